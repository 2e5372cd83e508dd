"""Each sabotaged bundle is refused with the right line and no other; the good one with none."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
import struct
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
from mod_components.release.checks import network as network_module
from mod_components.release.verify import bundles_to_verify, verify
from tests.backbones import build_network
from tests.release.checks.good import (
    PACKAGE,
    copy_bundle,
    edit,
    make_bundle,
    make_zip,
    record,
    save_weights,
    weights,
)

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
    """What the process that builds the good one's network has found."""
    return network_module._in_process(good, [1, 4, 64, 64, 64])


@pytest.fixture
def same_network(built: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Build once for all: starting a process takes seconds, and most sabotage leaves it."""
    monkeypatch.setattr(network_module, "_in_process", lambda *_: built)


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
    before = listing(good)
    report = verify(good)
    assert report.lines() == [f"{good}: passed"]
    assert report.passed
    packed = make_zip(good, tmp_path / "swinunetr_mod_v0.1.0.zip")
    assert verify(packed).lines() == [f"{packed}: passed"]
    assert listing(good) == before  # no caches, either
    assert listing(tmp_path) == {packed.as_posix()}


@pytest.mark.parametrize("name", ["segmamba", "vit"])
def test_good_one_with_a_network_of_ours(name: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, name)
    if name == "vit":  # one input size, which packing takes from the training
        for tensor in ("inputs#image", "outputs#pred"):
            edit(folder, META, **{f"network_data_format#{tensor}#spatial_shape": [64, 64, 64]})
    packed = make_zip(folder, tmp_path / f"{name}_mod_v0.1.0.zip")
    assert verify(packed).lines() == [f"{packed}: passed"]


@pytest.mark.parametrize("name", backbones())
def test_committed_bundles_pass_without_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"{name}_mod"
    source = BUNDLES / folder.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("models", "eval"))
    if name != "segmamba":  # one is built for real
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


def listed_elsewhere(**row: str) -> Callable[[Path], None]:
    listed = {"path": "docs/atlas.png", "url": "https://a.org/b", "hash_type": "sha1", **row}
    text = json.dumps({"large_files": [listed]}, indent=4)
    return made("large_files.json", text.encode())


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


def test_other_settings_than_the_trainings(bad: Path) -> None:
    """The network is built for real, in a process of its own."""
    edit(bad, RECORD, **{"settings#feature_size": 24, "settings#network#feature_size": 24})
    found = lines(bad)
    assert len(found) == 1
    assert re.fullmatch(
        rf"{MODEL}: does not fit SwinUNETR: \d+ of \d+ tensors differ, first (\S+ is \[.*\] in the "
        r"file and \[.*\] in the network(, )?){3}; give it the weights and the training\.json of "
        r"one training, whose settings it is built by",
        found[0],
    )


def test_network_of_other_channels(bad: Path) -> None:
    edit(bad, INFERENCE, **{"network_def#out_channels": 2})
    metadata, fit = lines(bad)
    assert metadata == (
        f"{META}: 'network_def' makes [1, 2, 64, 64, 64] of [1, 4, 64, 64, 64], not "
        "[1, 3, 64, 64, 64]; correct 'num_channels' or the network"
    )
    assert fit.startswith(f"{MODEL}: does not fit SwinUNETR: 2 of ")


def test_size_that_the_network_refuses(bad: Path) -> None:
    shape = "network_data_format#inputs#image#spatial_shape"
    edit(bad, META, **{shape: ["48*n", "48*n", "48*n"]})
    (found,) = lines(bad)
    assert found.startswith(f"{META}: 'network_def' does not take an input of its 'spatial_shape'")


def test_network_that_cannot_be_built(bad: Path) -> None:
    edit(bad, INFERENCE, **{"network_def#feature_size": 7})
    (found,) = lines(bad)
    assert found.startswith(f"{INFERENCE}: 'network_def' can't be built (")


@pytest.mark.usefixtures("same_network")
def test_all_failures_in_one_go(bad: Path) -> None:
    names = ["no licence", "empty field", "not finite", "personal path", "command for a class"]
    for name in names:
        SABOTAGE[name][0](bad)
    found = lines(bad)
    assert len(found) == len(names)
    assert all(any(re.fullmatch(SABOTAGE[name][1], line) for line in found) for name in names)


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
