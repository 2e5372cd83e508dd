"""Each sabotaged bundle is refused with the right line and no other; the good one with none."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mod_components.errors import SettingsError
from mod_components.release import backbones, render_bundle
from mod_components.release import verify as verify_module
from mod_components.release.card import card_values
from mod_components.release.checks import network as network_module
from mod_components.release.pack import pack
from mod_components.release.trained import trained_row
from mod_components.release.verify import bundles_to_verify, verify
from tests.backbones import build_network
from tests.bundles.conftest import run_python
from tests.release.checks.good import (
    PACKAGE,
    ROI,
    copy_bundle,
    edit,
    make_bundle,
    make_zip,
    record,
    save_weights,
    weights,
)
from tests.release.runs import make_run

META, TRAIN, INFERENCE = (f"configs/{name}.json" for name in ("metadata", "train", "inference"))
MODEL, RECORD = "models/model.pt", "models/training.json"
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return copy_bundle(good, tmp_path)


@pytest.fixture(scope="module")
def built(good: Path) -> dict[str, Any]:
    """What the process that builds the good one's network finds."""
    return found_in("swinunetr")


@pytest.fixture
def same_network(built: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Build once for all: starting a process takes seconds, and most sabotage leaves it."""
    monkeypatch.setattr(network_module, "_in_process", lambda *_: built)


def found_in(name: str) -> dict[str, Any]:
    """What building a small network in a process of its own finds, which takes seconds."""
    network = build_network(name, ROI)
    return {
        "class": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": {key: list(tensor.shape) for key, tensor in network.state_dict().items()},
        "output": [1, 3, *ROI],
    }


def lines(path: Path) -> list[str]:
    return [str(problem) for problem in verify(path).problems]


def listing(folder: Path) -> set[str]:
    return {path.as_posix() for path in folder.rglob("*")}


class Hostile:
    """Touches a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_good_one_passes_with_no_line(good: Path, tmp_path: Path) -> None:
    """The network is built for real, in a process of its own."""
    before = listing(good)
    report = verify(good)
    assert report.lines() == [f"{good}: passed"]
    assert report.passed
    assert listing(good) == before  # no caches, either


@pytest.mark.usefixtures("same_network")
def test_good_zip_passes_with_no_line(good: Path, tmp_path: Path) -> None:
    packed = make_zip(good, tmp_path / "swinunetr_mod_v0.1.0.zip")
    assert verify(packed).lines() == [f"{packed}: passed"]
    assert listing(tmp_path) == {packed.as_posix()}


@pytest.mark.parametrize("name", ["segmamba", "vit"])
def test_good_one_with_a_network_of_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle(tmp_path, name)
    if name == "vit":  # the other is built for real
        found = found_in(name)
        monkeypatch.setattr(network_module, "_in_process", lambda *_: found)
    packed = make_zip(folder, tmp_path / f"{name}_mod_v0.1.0.zip")
    assert verify(packed).lines() == [f"{packed}: passed"]


@pytest.mark.usefixtures("same_network")
@pytest.mark.parametrize("options", [{}, {"use_mod": False, "overlap": 0.25}])
def test_what_packing_makes_passes(options: dict[str, Any], tmp_path: Path) -> None:
    """The zip and the folder for Hugging Face, of a training with settings of its own."""
    run = make_run(tmp_path / "run", "swinunetr", options=options)
    packed = pack("swinunetr", bundles=BUNDLES, run=run, dist=tmp_path / "dist")
    assert verify(packed).lines() == [f"{packed}: passed"]
    assert lines(tmp_path / "dist" / "huggingface" / "swinunetr_mod") == []


@pytest.mark.usefixtures("same_network")
def test_a_folder_for_hugging_face(bad: Path) -> None:
    (bad / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Model overview\n")
    (bad / ".gitattributes").write_text("*.pt filter=lfs diff=lfs merge=lfs -text\n")
    for name in (".git", ".cache"):
        (bad / name).mkdir()
        (bad / name / "config").write_text("/home/jane/notes")
    assert lines(bad) == []
    packed = make_zip(bad, bad.parent / "swinunetr_mod.zip")
    found = lines(packed)  # which are of no use in a zip
    assert ".git: is of version control; leave it out, as packing does" in found
    assert ".cache/config: has no place in a bundle; leave it out" in found


@pytest.mark.parametrize("name", backbones())
def test_committed_bundles_pass_without_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"{name}_mod"
    source = BUNDLES / folder.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("models", "eval"))
    if name != "unetr":  # one is built for real
        shape = verify_module.Bundle(folder).object(META)["network_data_format"]["outputs"]
        sides = [int(str(side).partition("*")[0]) for side in shape["pred"]["spatial_shape"]]
        found = {"class": "", "tensors": {}, "output": [1, 3, *sides]}
        monkeypatch.setattr(network_module, "_in_process", lambda *_: found)
    assert verify(folder).lines() == [
        "note: models/model.pt: is not there, so that no weights were checked; train first",
        f"{folder}: passed",
    ]


def pickle_in_weights(folder: Path) -> None:
    save_weights(folder, {"a": torch.zeros(1), "b": Hostile(folder.parent / "touched")})


def pickle_elsewhere(folder: Path) -> None:
    hostile = Hostile(folder.parent / "touched")
    (folder / "docs" / "figure.png").write_bytes(pickle.dumps(hostile))


def old_pickle_elsewhere(folder: Path) -> None:
    hostile = Hostile(folder.parent / "touched")
    (folder / "docs" / "notes.txt").write_bytes(pickle.dumps(hostile, protocol=0))


def cut_pickle(folder: Path) -> None:
    hostile = Hostile(folder.parent / "touched")
    (folder / "docs" / "figure.png").write_bytes(pickle.dumps(hostile)[:-1])


def whole_module(folder: Path) -> None:
    save_weights(folder, build_network("swinunetr", (64, 64, 64)))


def object_array(folder: Path) -> None:
    np.save(folder / "docs" / "figure.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "docs" / "figure.npy").rename(folder / "docs" / "figure.png")


def archive_inside(folder: Path) -> None:
    with zipfile.ZipFile(folder / "docs" / "figure.png", "w") as archive:
        archive.writestr("a", "b")


def pickle_in_another_case(folder: Path) -> None:
    """Which torch finds all the same."""
    torch.save({"a": Hostile(folder.parent / "touched")}, folder / "models" / "plain.pt")
    with (
        zipfile.ZipFile(folder / "models" / "plain.pt") as plain,
        zipfile.ZipFile(folder / "models" / "model_ema.pt", "w") as hidden,
    ):
        for entry in plain.infolist():
            hidden.writestr(entry.filename.replace("data.pkl", "data.PKL"), plain.read(entry))
    (folder / "models" / "plain.pt").unlink()


def pickle_before_zip(folder: Path) -> None:
    """Which torch loads as an old file, where others see a zip alone."""
    content = pickle.dumps(Hostile(folder.parent / "touched"), protocol=2)
    (folder / "models" / "model_ema.pt").write_bytes(content + (folder / MODEL).read_bytes())


def not_finite(folder: Path) -> None:
    content = weights(folder)
    content["out.conv.conv.bias"][1] = float("nan")
    save_weights(folder, content)


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda f: save_weights(f, {f"{prefix}{k}": v for k, v in weights(f).items()})


def appended(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(text)

    return change


def edited(path: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, path, **changes)


def removed(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new, 1))

    return change


def made(path: str, content: bytes = b"") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    return change


def large(folder: Path) -> None:
    with open(folder / "docs" / "atlas.png", "wb") as file:
        file.truncate(26 * 10**6)


def listed_elsewhere(**row: Any) -> Callable[[Path], None]:
    listed = {"path": "docs/atlas.png", "url": "https://a.org/b", "hash_type": "sha1", **row}
    text = json.dumps({"large_files": [listed]}, indent=4)
    return made("large_files.json", text.encode())


ANEW = "pack the bundle anew"
FORMATS = "network_data_format#outputs#pred"
SAVE = r"save the plain network's state_dict: torch\.save\(network\.state_dict\(\), path\)"
SABOTAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nested weights": (
        lambda f: save_weights(f, {"state_dict": weights(f), "epoch": 3}),
        rf"{MODEL}: is nested: the weights stand under 'state_dict'; {SAVE}",
    ),
    "wrapped network": (
        prefixed("module."),
        rf"{MODEL}: has names that start with 'module\.', of a wrapped network; {SAVE}",
    ),
    "plain object": (
        lambda f: save_weights(f, {**weights(f), "epoch": 3}),
        rf"{MODEL}: holds 1 values that are no tensors, first 'epoch'; {SAVE}",
    ),
    "no dictionary": (
        lambda f: save_weights(f, torch.zeros(3)),
        rf"{MODEL}: holds a Tensor, not a state_dict; {SAVE}",
    ),
    "MOD's leftovers": (
        lambda f: save_weights(f, {**weights(f), "tokenizer.token_head.weight": torch.ones(2)}),
        rf"{MODEL}: holds 1 tensors of MOD, first 'tokenizer\.token_head\.weight'; {SAVE}",
    ),
    "not finite": (
        not_finite,
        rf"{MODEL}: has 1 tensors that are not finite, first 'out\.conv\.conv\.bias'; .*",
    ),
    "damaged weights": (
        lambda f: (removed(MODEL)(f), made(MODEL, b"weights")(f)),
        rf"{MODEL}: can't be loaded with weights_only=True \(.*\); {SAVE}",
    ),
    "a tensor less": (
        lambda f: save_weights(f, dict(list(weights(f).items())[1:])),
        rf"{MODEL}: does not fit SwinUNETR: 1 of \d+ tensors differ, first \S+ is missing in the "
        r"file and \[\d+.*\] in the network; give it .*",
    ),
    "pickled object in the weights": (
        pickle_in_weights,
        rf"{MODEL}: holds pickled code, which runs when it is loaded \(posix\.mkdir\); {SAVE}",
    ),
    "pickled network": (
        whole_module,
        rf"{MODEL}: holds pickled code, .* \(monai\.networks\.nets\.\S+SwinUNETR.*\); {SAVE}",
    ),
    "pickle elsewhere": (
        pickle_elsewhere,
        r"docs/figure\.png: is a pickle that names \? STACK_GLOBAL; leave the file out",
    ),
    "old pickle elsewhere": (
        old_pickle_elsewhere,
        r"docs/notes\.txt: is a pickle that names posix mkdir; leave the file out",
    ),
    "cut pickle": (cut_pickle, r"docs/figure\.png: is a pickle that names .*"),
    "array of objects": (object_array, r"docs/figure\.png: is an array of Python objects, .*"),
    "archive inside": (archive_inside, r"docs/figure\.png: is an archive inside the bundle, .*"),
    "hidden pickle": (
        pickle_in_another_case,
        r"models/model_ema\.pt: holds pickled code, .* \(posix\.mkdir\); .*",
    ),
    "pickle before the zip": (
        pickle_before_zip,
        r"models/model_ema\.pt: holds something before its first or after its last entry; .*",
    ),
    "zero everywhere": (
        lambda f: save_weights(f, {k: torch.zeros_like(v) for k, v in weights(f).items()}),
        rf"{MODEL}: is zero everywhere, as no training leaves it; .*",
    ),
    "double precision": (
        lambda f: save_weights(f, {k: v.double() for k, v in weights(f).items()}),
        rf"{MODEL}: has \d+ tensors of torch\.float64, first '.*'; save them as torch\.float32, .*",
    ),
    "empty licence": (
        lambda f: (f / "LICENSE").write_text(""),
        rf"LICENSE: is not what this release renders for this training, first at line 1; {ANEW}",
    ),
    "empty data licence": (
        lambda f: (f / "docs/data_license.txt").write_text(""),
        rf"docs/data_license\.txt: is not what .*, first at line 1; {ANEW}",
    ),
    "empty card": (
        lambda f: (f / "docs/README.md").write_text(""),
        rf"docs/README\.md: is not what .*, first at line 1; {ANEW}",
    ),
    "claim in the card": (
        replaced("docs/README.md", "| 0.5000 |", "| 0.9900 |"),
        rf"docs/README\.md: is not what .*, first at line \d+; {ANEW}",
    ),
    "no baseline": (
        removed("configs/baseline.json"),
        rf"configs/baseline\.json: is missing; {ANEW}",
    ),
    "crop that the network refuses": (
        edited(RECORD, **{"settings#roi_size": [10, 10, 10]}),
        rf"{RECORD}: has \[10, 10, 10\] for 'settings#roi_size'; the network takes multiples .*",
    ),
    "crop that is too small": (
        edited(RECORD, **{"settings#roi_size": [32, 32, 32]}),
        rf"{RECORD}: has \[32, 32, 32\] for .*; the network takes multiples of 32, the largest "
        r"at least 64; .*",
    ),
    "no crop": (
        edited(RECORD, **{"settings#roi_size": "x"}),
        rf"{RECORD}: has 'x' for 'settings#roi_size', not three whole numbers; .*",
    ),
    "overlap": (
        edited(RECORD, **{"settings#overlap": 3}),
        rf"{RECORD}: has 3 for 'settings#overlap', not a number from 0 to below 1; .*",
    ),
    "record of another bundle": (
        edited(RECORD, **{"settings#bundle": "unetr_mod"}),
        rf"{RECORD}: is of a training of 'unetr_mod', and the bundle is swinunetr_mod; .*",
    ),
    "no licence": (removed("LICENSE"), "LICENSE: is missing; add the licence's text"),
    "no data licence": (
        removed("docs/data_license.txt"),
        r"docs/data_license\.txt: is missing; name the data sets and their terms in it",
    ),
    "no record": (
        removed(RECORD),
        r"models/training\.json: is missing; copy it from the folder of the training",
    ),
    "record of another network": (
        edited(RECORD, **{"settings#network#target": "UNETR"}),
        r"models/training\.json: is of a training of UNETR, and .* builds SwinUNETR; take .*",
    ),
    "resume state": (
        lambda f: torch.save({"epoch": 1}, f / "models" / "last.pt"),
        r"models/last\.pt: is the state of a training, .*; leave it out, as packing does",
    ),
    "cache": (
        made("configs/__pycache__/a.cpython-311.pyc", b"x"),
        "configs/__pycache__: is a cache; leave it out, as packing does",
    ),
    "output": (
        made("eval/tensorboard/events.out.tfevents.1", b"x"),
        "eval: is the output of a training or an evaluation; leave it out, as packing does",
    ),
    "surplus": (made("models/notes.txt", b"x"), r"models/notes\.txt: has no place in a bundle; .*"),
    "link": (
        lambda f: (f / "docs" / "figure.png").symlink_to("/etc/hostname"),
        r"docs/figure\.png: is a link or no plain file; put the file itself there",
    ),
    "big file": (
        large,
        r"docs/atlas\.png: has 26 MB, 25 are allowed outside models/; name it in large_files\.yml",
    ),
    "big file without hash": (
        lambda f: (large(f), listed_elsewhere()(f)),
        r"large_files\.json: docs/atlas\.png lacks hash_val; give all of path, url, .*",
    ),
    "big file with a path that is none": (
        lambda f: listed_elsewhere(path=["docs"])(f),
        r"large_files\.json: is no list 'large_files' \(an entry's path is no text\); write it .*",
    ),
    "big file with another hash": (
        lambda f: (large(f), listed_elsewhere(hash_val="0" * 40)(f)),
        r"large_files\.json: docs/atlas\.png: the file has another sha1 than 0+; correct .*",
    ),
    "absolute path": (
        edited(RECORD, **{"settings#dataset_dir": "/data/BraTS2021"}),
        r"models/training\.json: settings#dataset_dir: '/data/BraTS2021' is a path of one machine; "
        "give it relative to the bundle",
    ),
    "absolute path in a command": (
        edited(RECORD, command=["run", "--config_file=C:\\Users\\me\\train.json"]),
        r"models/training\.json: command#1: 'C:.*train\.json' is a path of one machine; .*",
    ),
    "absolute path in a config": (
        edited(TRAIN, dataset_dir="/data/BraTS2021"),
        r"configs/train\.json: dataset_dir: '/data/BraTS2021' is a path of one machine; .*",
    ),
    "absolute path in an expression": (
        edited(TRAIN, output_dir="$os.path.join('/data/out', 'eval')"),
        r"configs/train\.json: output_dir: '/data/out' is a path of one machine; .*",
    ),
    "personal path": (
        appended("docs/README.md", "\nSee /home/jane/notes.\n"),
        r"docs/README\.md: line \d+: '/home/jane/notes\.' is a path of one machine; .*",
    ),
    "indent": (
        lambda f: (f / META).write_text(json.dumps(json.loads((f / META).read_text()), indent=2)),
        r"configs/metadata\.json: is not indented by 4; write it with json\.dump\(.*\)",
    ),
    "one line": (
        lambda f: (f / RECORD).write_text(json.dumps(record())),
        r"models/training\.json: is not indented by 4; .*",
    ),
    "broken JSON": (
        appended("configs/baseline.json", "}"),
        r"configs/baseline\.json: is no valid JSON \(Extra data: .*\); correct it",
    ),
    "key twice": (
        replaced("configs/baseline.json", "{", '{\n    "use_mod": true,'),
        r"configs/baseline\.json: is no valid JSON \(the key 'use_mod' is there twice\); .*",
    ),
    "no changelog entry": (
        edited(META, version="0.2.0"),
        r"configs/metadata\.json: 'changelog' says nothing of version 0\.2\.0; add what changed .*",
    ),
    "no version": (
        edited(META, version="1.0", changelog={"1.0": "all"}),
        r"configs/metadata\.json: 'version' is '1\.0'; give major\.minor\.patch, such as 0\.1\.0",
    ),
    "old schema": (
        edited(META, schema="https://example.org/meta_schema_20220324.json"),
        r"configs/metadata\.json: 'schema' is .*, not the current one; give https://\S+",
    ),
    "deprecated field": (
        edited(META, optional_packages_version={"nibabel": "5"}),
        r"configs/metadata\.json: 'optional_packages_version' is deprecated; move its packages .*",
    ),
    "empty field": (
        edited(META, intended_use=" "),
        r"configs/metadata\.json: 'intended_use' is empty; fill it in",
    ),
    "no field": (edited(META, authors=None), r"configs/metadata\.json: 'authors' is missing; .*"),
    "field of another type": (
        edited(META, task=["segmentation"]),
        r"configs/metadata\.json: 'task' is not text; write it as such",
    ),
    "wrong channel_def": (
        edited(META, **{f"{FORMATS}#channel_def": {"0": "tumour core", "1": "whole tumour"}}),
        r"configs/metadata\.json: 'network_data_format#outputs#pred#channel_def' is \{.*\}; give "
        r'\{"0": "background", "1": "necrotic core", "2": "oedema", "4": "enhancing tumour"\}',
    ),
    "wrong order of the channels": (
        edited(
            META,
            **{
                "network_data_format#inputs#image#channel_def": {
                    **{"0": "FLAIR", "1": "T1"},
                    **{"2": "T1ce", "3": "T2"},
                }
            },
        ),
        r'.*#channel_def\' is .*; give \{"0": "T1ce", "1": "T1", "2": "T2", "3": "FLAIR"\}',
    ),
    "command for a class": (
        edited(INFERENCE, **{"handlers#0": {"_target_": "os.system", "command": "id"}}),
        r"configs/inference\.json: 'handlers#0' names os\.system, code from outside .*",
    ),
    "loader for a class": (
        edited(INFERENCE, **{"handlers#0": {"_target_": "torch.load", "f": "x"}}),
        r"configs/inference\.json: 'handlers#0' names torch\.load, which loads what .*",
    ),
    "unknown class": (
        edited(INFERENCE, **{"handlers#0": {"_target_": "StatsHandlers"}}),
        r"configs/inference\.json: 'handlers#0' names StatsHandlers, which MONAI has not; .*",
    ),
    "class that is not brought along": (
        edited(TRAIN, **{"validate#handlers#0#_target_": "mod_components.handlers.ValidationLog"}),
        r"configs/train\.json: 'validate#handlers#0' names .*, of a package that .*",
    ),
    "class that the module lacks": (
        edited(TRAIN, **{"validate#handlers#0#_target_": f"{PACKAGE}.handlers.Logs"}),
        r"configs/train\.json: 'validate#handlers#0' names .*, which is not in that .*",
    ),
    "refused import": (
        edited(INFERENCE, **{"imports#0": "$import subprocess"}),
        r"configs/inference\.json: 'imports#0' imports subprocess, which .*; leave it out",
    ),
    "import from elsewhere": (
        edited(INFERENCE, **{"imports#0": "$from evil.code import run"}),
        r"configs/inference\.json: 'imports#0' imports evil\.code, which .*; leave it out",
    ),
    "command in an expression": (
        edited(INFERENCE, **{"run#0": "$os.system('id') or @checks"}),
        r"configs/inference\.json: 'run#0' uses system, which no bundle needs; leave it out",
    ),
    "no Python": (
        edited(INFERENCE, **{"run#0": "$@checks and"}),
        r"configs/inference\.json: 'run#0' is no Python \(SyntaxError\); leave it out",
    ),
    "no such id": (
        edited(INFERENCE, **{"evaluator#device": "@gadget"}),
        r"configs/inference\.json: 'evaluator#device' refers to @gadget, which .*; correct the id",
    ),
    "no id for MONAI Label": (
        edited(TRAIN, **{"validate#dataset#data": None}),
        r"configs/train\.json: 'validate#dataset#data' is missing, which MONAI and .*; add it",
    ),
    "handlers as an expression": (
        edited(TRAIN, **{"train#handlers": "$[]"}),
        r"configs/train\.json: 'train#handlers' is no list of objects, .*; write it as one",
    ),
    "changed module": (
        appended(f"{PACKAGE}/losses.py", "\nimport os\n"),
        rf"{PACKAGE}/losses\.py: is no module that the configs need, or was changed; pack .*",
    ),
    "missing module": (
        removed(f"{PACKAGE}/mod/heads.py"),
        rf"{PACKAGE}/mod/heads\.py: is missing, and the configs or other modules need it; pack .*",
    ),
    "surplus module": (
        made(f"{PACKAGE}/evil.py", b"import os\n"),
        rf"{PACKAGE}/evil\.py: is no module that the configs need, or was changed; pack .*",
    ),
    "module that belongs into no bundle": (
        made(f"{PACKAGE}/cli.py", b"import os\n"),
        rf"{PACKAGE}/cli\.py: is no module that the configs need, or was changed; pack .*",
    ),
}


@pytest.mark.usefixtures("same_network")
@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage(name: str, bad: Path) -> None:
    sabotage, expected = SABOTAGE[name]
    sabotage(bad)
    before = listing(bad.parent)
    found = lines(bad)
    assert len(found) == 1, found
    assert re.fullmatch(expected, found[0]), found
    assert ";" in found[0]
    assert listing(bad.parent) == before  # above all nothing that a pickle has made


@pytest.mark.usefixtures("same_network")
def test_weights_of_another_training(bad: Path) -> None:
    save_weights(bad, build_network("swinunetrv2", ROI).state_dict())
    found = lines(bad)
    assert len(found) == 1
    assert re.fullmatch(
        rf"{MODEL}: does not fit SwinUNETR: \d+ of \d+ tensors differ, first (\S+ is .* in the "
        r"file and .* in the network(, )?){3}; give it the weights and the training\.json of "
        r"one training, whose settings it is built by",
        found[0],
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a process has")
def test_what_is_built_gets_no_more_memory_than_its_weights_can_need(tmp_path: Path) -> None:
    """A record may name any width, and building comes before it is compared with the weights."""
    code = (
        "import pathlib, torch; from mod_components.release.checks import network; "
        f"network._limit_memory(pathlib.Path({str(tmp_path / 'model.pt')!r})); "
        "torch.empty(2**28); torch.empty(2**32)"  # 1 and 16 GiB
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode != 0
    assert "can't allocate memory" in done.stderr
    assert "17179869184 bytes" in done.stderr


@pytest.mark.parametrize(
    ("changes", "shape", "expected"),
    [
        ({}, [1, 4, 64, 64, 64], {"output": [1, 3, 64, 64, 64]}),
        ({"network_def#out_channels": 2}, [1, 4, 64, 64, 64], {"output": [1, 2, 64, 64, 64]}),
        ({}, [1, 4, 48, 48, 48], {"pass": ".*(divisible|size|shape).*"}),
        ({"network_def#feature_size": 7}, [1, 4, 64, 64, 64], {"error": ".*12.*|.*divisible.*"}),
        ({"network_def": "UNETR"}, [1, 4, 64, 64, 64], {"error": "it is a str"}),
    ],
)
def test_what_building_finds(
    changes: dict[str, Any],
    shape: list[int],
    expected: dict[str, Any],
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What runs in the process of its own, in this one."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    edit(bad, INFERENCE, **changes)
    found = network_module._build(str(bad), shape)
    for key, value in expected.items():
        assert found[key] == value if key == "output" else re.fullmatch(value, found[key]), found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"output": [1, 2, *ROI]},
            f"{META}: 'network_def' makes [1, 2, 64, 64, 64] of [1, 4, 64, 64, 64], not "
            "[1, 3, 64, 64, 64]; correct 'num_channels' or the network",
        ),
        (
            {"pass": "too small"},
            f"{META}: 'network_def' does not take an input of its 'spatial_shape', "
            "[1, 4, 64, 64, 64] (too small); give the sizes that the network takes",
        ),
        (
            {"error": "no such class"},
            f"{INFERENCE}: 'network_def' can't be built (no such class); correct it or "
            f"{MODEL}'s record",
        ),
        (
            {"parameters": 98_760_000},
            r"docs/README.md: gives the network \d+\.\d M parameters, and it has 98.8 M; .*",
        ),
    ],
)
def test_what_is_said_of_it(
    changes: dict[str, Any],
    expected: str,
    bad: Path,
    built: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_module, "_in_process", lambda *_: {**built, **changes})
    (found,) = lines(bad)
    assert found == expected or re.fullmatch(expected, found)


@pytest.mark.usefixtures("same_network")
def test_all_failures_in_one_go(bad: Path) -> None:
    names = ["no licence", "empty field", "not finite", "personal path", "command for a class"]
    for name in names:
        SABOTAGE[name][0](bad)
    found = lines(bad)
    assert len(found) == len(names)
    assert all(any(re.fullmatch(SABOTAGE[name][1], line) for line in found) for name in names)


def in_network(**entries: Any) -> Callable[[Path], None]:
    return edited(INFERENCE, **{f"network_def#{key}": value for key, value in entries.items()})


def in_record(**entries: Any) -> Callable[[Path], None]:
    return edited(RECORD, **{f"settings#network#{key}": value for key, value in entries.items()})


COMMAND = ["mkdir", "touched"]
NOT_RENDERED = "is not what this release renders for this training, first at"
HARMLESS_LOOKING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "MONAI's runner by its bare name": (
        in_network(_requires_={"_target_": "run_cmd", "cmd_list": COMMAND}),
        rf"{INFERENCE}: {NOT_RENDERED} 'network_def#_requires_'; {ANEW}",
    ),
    "for an argument": (
        in_network(feature_size={"_target_": "run_cmd", "cmd_list": COMMAND}),
        rf"{INFERENCE}: {NOT_RENDERED} 'network_def#feature_size'; {ANEW}",
    ),
    "by its full name": (
        in_network(_requires_={"_target_": "monai.utils.run_cmd", "cmd_list": COMMAND}),
        rf"{INFERENCE}: {NOT_RENDERED} 'network_def#_requires_'; {ANEW}",
    ),
    "torch's runner": (
        in_network(
            _requires_={"_target_": "torch.utils.collect_env.run", "command": "mkdir touched"}
        ),
        rf"{INFERENCE}: {NOT_RENDERED} 'network_def#_requires_'; {ANEW}",
    ),
    "an import by name": (
        in_network(_requires_=f"$importlib.import_module('subprocess').run({COMMAND})"),
        rf"{INFERENCE}: {NOT_RENDERED} 'network_def#_requires_'; {ANEW}",
    ),
    "unpickling": (
        edited(TRAIN, **{"initialize#0": "$torch.load('x.pt', weights_only=False)"}),
        rf"{TRAIN}: {NOT_RENDERED} 'initialize#0'; {ANEW}",
    ),
    "logging": (
        replaced("configs/logging.conf", "(sys.stdout,)", "(__import__('os').mkdir('touched'),)"),
        rf"configs/logging\.conf: {NOT_RENDERED} line \d+; {ANEW}",
    ),
    "another config": (
        made("configs/more.json", b'{\n    "a": 1\n}\n'),
        r"configs/more\.json: is no config of this bundle; leave it out",
    ),
    "expression in the metadata": (
        edited(META, description="$__import__('os').mkdir('touched')"),
        rf"{META}: 'description' is an expression, .*; write plain text",
    ),
    "component in the metadata": (
        edited(META, data_type={"_target_": "run_cmd"}),
        rf"{META}: 'data_type' is not text; .*|{META}: 'data_type#_target_' is an expression, .*",
    ),
    "macro in the metadata": (
        edited(META, copyright="%/x.json::a"),
        rf"{META}: 'copyright' is an expression, .*; write plain text",
    ),
    "runner for the record's network": (
        in_record(target="run_cmd"),
        rf"{RECORD}: names 'run_cmd', no network of MONAI's or of this project; train one of these",
    ),
    "component in the record": (
        in_record(in_channels={"_target_": "run_cmd", "cmd_list": COMMAND}),
        rf"{RECORD}: has more than numbers and words in 'settings#network#in_channels'; .*",
    ),
    "requirement in the record": (
        in_record(_requires_="$@x"),
        rf"{RECORD}: has more than numbers and words in 'settings#network#_requires_'; .*",
    ),
    "expression in the record": (
        in_record(in_channels="$__import__('os').mkdir('touched')"),
        rf"{RECORD}: has more than numbers and words in 'settings#network#in_channels'; .*",
    ),
    "expression in a setting": (
        edited(RECORD, **{"settings#feature_size": "$__import__('os').mkdir('touched')"}),
        rf"{RECORD}: has .* for 'settings#feature_size', which is of another type than .*",
    ),
    "expression for the crop": (
        edited(RECORD, **{"settings#roi_size": ["__import__('os').mkdir('touched')", 64, 64]}),
        rf"{RECORD}: has .* for 'settings#roi_size', not three whole numbers; .*",
    ),
    "second package": (
        made("mod_components_0_0_9/__init__.py", b"import os\n"),
        rf"mod_components_0_0_9: is a second package beside {PACKAGE}; leave it out",
    ),
    "second package that sorts behind": (
        made("mod_components_9/__init__.py", b"import os\n"),
        rf"mod_components_9: is a second package beside {PACKAGE}; leave it out",
    ),
    "no module": (
        made("monai/__init__.py", b""),
        r"monai/__init__\.py: has no place in a bundle.*",
    ),
}


@pytest.mark.parametrize("name", HARMLESS_LOOKING)
def test_nothing_of_an_attack_is_run(name: str, bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of forbidden names is complete: what is built equals this release's own."""
    monkeypatch.setattr(network_module, "_in_process", never)
    monkeypatch.chdir(bad.parent)
    attack, expected = HARMLESS_LOOKING[name]
    attack(bad)
    found = lines(bad)
    assert len(found) == (2 if name == "component in the metadata" else 1), found
    assert all(re.fullmatch(expected, line) for line in found), found
    assert not (bad.parent / "touched").exists()


def never(*_: object) -> dict[str, Any]:
    raise AssertionError("built a network that no check has passed")


@pytest.mark.parametrize(
    "name",
    [
        *("command for a class", "command in an expression", "refused import", "changed module"),
        *("pickled object in the weights", "pickle elsewhere", "link", "no record"),
    ],
)
def test_nothing_is_built_before_the_checks_have_passed(
    name: str, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "_in_process", never)
    SABOTAGE[name][0](bad)
    report = verify(bad)
    assert not report.passed
    assert [str(note) for note in report.notes] == [
        f"{INFERENCE}: the network was not built, because of the above"
    ]


@pytest.mark.usefixtures("same_network")
def test_a_packed_bundle_needs_weights(bad: Path, tmp_path: Path) -> None:
    (bad / MODEL).unlink()
    packed = make_zip(bad, tmp_path / "swinunetr_mod.zip")
    (found,) = lines(packed)
    assert found.startswith(f"{MODEL}: is missing; train first and pack then, or name it in ")
    sums = {"path": MODEL, "url": "https://example.org/model.pt", "hash_val": "0" * 32}
    listed_elsewhere(**sums, hash_type="md5")(bad)
    assert lines(make_zip(bad, packed)) == []


def test_curves_that_the_card_shows_are_there(bad: Path) -> None:
    edit(bad, RECORD, curves="curves.png")
    training = json.loads((bad / RECORD).read_text())
    row = trained_row(backbones()["swinunetr"], training["settings"], bad / RECORD)
    card = card_values(training, row, package=PACKAGE)["performance_text"]
    old = card_values(record(), row, package=PACKAGE)["performance_text"]
    replaced("docs/README.md", old, card)(bad)
    assert lines(bad) == ["docs/curves.png: is missing, and the card shows it; " + ANEW]


def test_unreadable_metadata_are_one_problem(bad: Path) -> None:
    """What imports the metadata allow is not known then; programs stay forbidden."""
    (bad / META).write_text("{")
    (found,) = lines(bad)
    assert found.startswith(f"{META}: is no valid JSON (")
    SABOTAGE["refused import"][0](bad)
    assert len(lines(bad)) == 2


def test_a_bundle_of_another_name(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to compare it with, so that it is read, and never built."""
    monkeypatch.setattr(network_module, "_in_process", never)
    folder = copy_bundle(good, tmp_path).rename(tmp_path / "mine_mod")
    edit(folder, RECORD, **{"settings#bundle": "mine_mod"})
    report = verify(folder)
    assert report.passed
    assert [str(note) for note in report.notes] == [
        f"{INFERENCE}: this release has no bundle mine_mod: its network was not built"
    ]
    replaced("docs/README.md", "## Output", "## Results")(folder)
    replaced("configs/logging.conf", "sys.stdout", "sys.stderr")(folder)
    (folder / "LICENSE").write_text("")
    (folder / "docs" / "data_license.txt").write_text("")
    found = lines(folder)
    assert [line.partition(":")[0] for line in found] == [
        *("LICENSE", "configs/logging.conf", "docs/data_license.txt", "docs/README.md")
    ]
    assert "lacks the heading 'Output' in its place" in found[-1]


def test_a_rendered_folder_is_compared_with_the_rendering(tmp_path: Path) -> None:
    for path, text in render_bundle("unetr").items():
        (tmp_path / "unetr_mod" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unetr_mod" / path).write_text(text)
    edit(tmp_path / "unetr_mod", TRAIN, seed=1)
    assert lines(tmp_path / "unetr_mod") == [
        f"{TRAIN}: is not what this release renders, first at 'seed'; run 'python -m "
        "mod_components render'"
    ]


def test_a_packed_bundle_brings_its_code_along(tmp_path: Path, good: Path) -> None:
    folder = copy_bundle(good, tmp_path)
    shutil.rmtree(folder / PACKAGE)
    for path, text in render_bundle("swinunetr").items():
        (folder / path).write_text(text)
    packed = make_zip(folder, tmp_path / "swinunetr_mod.zip")
    found = lines(packed)
    assert (
        f"{TRAIN}: 'mod#views' names mod_components.mod.MaskedViews, of a package that the bundle "
        "does not bring along; pack the bundle anew"
    ) in found
    assert all("pack the bundle anew" in line for line in found)


def test_code_of_another_release(tmp_path: Path, good: Path) -> None:
    folder = copy_bundle(good, tmp_path)
    (folder / PACKAGE).rename(folder / "mod_components_9_9_9")
    for path in (TRAIN, INFERENCE, "configs/evaluate.json", "configs/multi_gpu_train.json"):
        text = (folder / path).read_text()
        (folder / path).write_text(text.replace(PACKAGE, "mod_components_9_9_9"))
    (found,) = lines(folder)
    assert re.fullmatch(
        r"mod_components_9_9_9: is of another release than \S+, which can't vouch for it; verify "
        "it with its own release",
        found,
    )


ZIPS: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "traversal": (
        lambda z: z.writestr("swinunetr_mod/../../evil", "x"),
        r"entry 'swinunetr_mod/\.\./\.\./evil' leads out of the folder; .*",
    ),
    "absolute": (
        lambda z: z.writestr("/etc/evil", "x"),
        r"entry '/etc/evil' is an absolute path or names a drive; .*",
    ),
    "two tops": (
        lambda z: z.writestr("other_mod/LICENSE", "x"),
        r"has 'other_mod', 'swinunetr_mod' at its top, .*; pack that folder alone",
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_hostile_zip(name: str, bad: Path, tmp_path: Path) -> None:
    spoil, expected = ZIPS[name]
    packed = make_zip(bad, tmp_path / "swinunetr_mod_v0.1.0.zip")
    with zipfile.ZipFile(packed, "a") as archive:
        spoil(archive)
    before = listing(tmp_path)
    found = lines(packed)
    assert any(re.fullmatch(rf"{re.escape(packed.name)}: {expected}", line) for line in found)
    assert len(found) == (1 if name != "absolute" else 2)  # "" is a second top folder, too
    assert listing(tmp_path) == before


def test_link_in_a_zip(bad: Path, tmp_path: Path) -> None:
    packed = make_zip(bad, tmp_path / "swinunetr_mod_v0.1.0.zip")
    link = zipfile.ZipInfo("swinunetr_mod/docs/figure.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "/etc/hostname")
    (found,) = lines(packed)
    assert "entry 'swinunetr_mod/docs/figure.png' is a symbolic link; get the bundle anew" in found


def test_bomb_and_damage(bad: Path, tmp_path: Path) -> None:
    packed = make_zip(bad, tmp_path / "swinunetr_mod_v0.1.0.zip")
    sound = packed.read_bytes()
    data = bytearray(sound)
    at = -1
    for _ in range(4):
        at = data.index(b"PK\x01\x02", at + 1)
        struct.pack_into("<I", data, at + 24, 2_500_000_000)
    packed.write_bytes(data)
    (found,) = lines(packed)
    assert re.search(r": unpacks to 1\d{10} bytes, and 4000000000 are allowed; get the", found)
    packed.write_bytes(sound.replace(b"\x00" * 8, b"\x00" * 7 + b"\x01", 1)[:-100])
    (found,) = lines(packed)
    assert ": is no readable zip (" in found


def test_hostile_weights_are_never_run(bad: Path, tmp_path: Path) -> None:
    """By the checks; and what they read is really dangerous."""
    target = bad.parent / "touched"
    pickle_in_weights(bad)
    pickle_elsewhere(bad)
    packed = make_zip(bad, tmp_path / "swinunetr_mod.zip")
    assert len(lines(bad)) == len(lines(packed)) == 2
    assert not target.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(bad / MODEL, weights_only=True)
    assert not target.exists()
    torch.load(bad / MODEL, weights_only=False)
    assert target.is_dir()


def test_what_all_means(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no bundle to verify: name a folder or a zip"):
        bundles_to_verify(["all"], str(tmp_path))
    (tmp_path / "bundles" / "a_mod" / "configs").mkdir(parents=True)
    (tmp_path / "bundles" / "notes").mkdir()
    assert bundles_to_verify(["all"], str(tmp_path)) == [tmp_path / "bundles" / "a_mod"]
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a_mod_v0.1.0.zip").write_bytes(b"x")
    assert bundles_to_verify(["all"], str(tmp_path)) == [tmp_path / "dist" / "a_mod_v0.1.0.zip"]
    assert bundles_to_verify(["x", "y.zip"]) == [Path("x"), Path("y.zip")]
    with pytest.raises(SettingsError, match="does not exist: give a bundle's folder"):
        verify(tmp_path / "nothing.zip")
