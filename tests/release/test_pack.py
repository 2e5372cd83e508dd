"""A packed bundle is whole, tells what it was trained on, and runs without this package."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from mod_components import __version__
from mod_components.errors import CheckpointError, SettingsError
from mod_components.files import file_digest
from mod_components.release import backbones, render
from mod_components.release.pack import pack, pack_all
from tests.bundles.conftest import run_python
from tests.release.runs import BUNDLES, METRICS, make_run

PACKAGE = f"mod_components_{__version__.replace('.', '_')}"


def packed(run: Path, name: str, dist: Path, **options: Any) -> Path:
    return pack(name, bundles=BUNDLES, run=run, dist=dist, **options)


def unzipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def parsed(bundle: Path, config: str) -> ConfigParser:
    workflow = ConfigWorkflow(
        str(bundle / "configs" / config),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(bundle),
    )
    return workflow.parser


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles put themselves on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "swinunetr", "swinunetr")


@pytest.fixture(scope="module")
def archive(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(
        run, "swinunetr_mod", tmp_path_factory.mktemp("dist"), base_url="https://x.org/r/"
    )


def test_what_is_in_it(archive: Path) -> None:
    assert archive.name == f"swinunetr_mod_v{__version__}.zip"
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        assert file.testzip() is None
    assert names == sorted(names)
    inside = [name.removeprefix("swinunetr_mod/") for name in names]
    code = [name for name in inside if name.startswith(f"{PACKAGE}/")]
    assert all(name.endswith(".py") for name in code)
    assert sorted(set(inside) - set(code)) == [
        "LICENSE",
        *(f"configs/{name}.json" for name in ("baseline", "evaluate", "inference")),
        "configs/logging.conf",
        *(f"configs/{name}.json" for name in ("metadata", "multi_gpu_train", "train")),
        "docs/README.md",
        "docs/data_license.txt",
        "models/model.pt",
        "models/training.json",
    ]


def test_model_info_and_downloader(archive: Path, run: Path, tmp_path: Path) -> None:
    digest = hashlib.sha1(archive.read_bytes()).hexdigest()
    title = f"swinunetr_mod_v{__version__}"
    info = json.loads((archive.parent / "model_info.json").read_text())
    assert info == {title: {"checksum": digest, "source": f"https://x.org/r/{title}.zip"}}
    (tmp_path / "model_info.json").write_text('{"a_mod_v1": {"checksum": "", "source": ""}}')
    packed(run, "swinunetr", tmp_path)
    info = json.loads((tmp_path / "model_info.json").read_text())
    assert info == {
        "a_mod_v1": {"checksum": "", "source": ""},
        title: {"checksum": digest, "source": ""},
    }
    downloader = Path(render.__code__.co_filename).with_name("unpack.py")
    if downloader.is_file():
        assert (tmp_path / "get_bundle.py").read_bytes() == downloader.read_bytes()


def test_the_same_inputs_give_the_same_bytes(archive: Path, run: Path, tmp_path: Path) -> None:
    """From another folder, with other times and another umask, at another time."""
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
        path.chmod(0o700)
    shutil.copytree(BUNDLES / "swinunetr_mod", tmp_path / "bundles" / "swinunetr_mod")
    before = os.umask(0o077)
    try:
        again = pack("swinunetr", bundles=tmp_path / "bundles", run=tmp_path / "run", dist=tmp_path)
    finally:
        os.umask(before)
    assert again.read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(again) as file:
        for entry in file.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.external_attr >> 16 == 0o100644
            assert entry.create_system == 3
            stored = entry.filename.endswith(".pt")
            assert entry.compress_type == (zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    assert not list(tmp_path.rglob(".*.tmp"))


def test_no_path_of_the_machine_is_in_it(tmp_path: Path) -> None:
    command = [
        "/home/ann/venv/monai/bundle/__main__.py",
        *("run", "--config_file", "['/home/ann/b/train.json','/home/ann/b/baseline.json']"),
        *("--dataset_dir=/data/Ann Smith/BraTS 2021", "--bundle_root", "~/runs/fold 0"),
        *("--unlabelled_dir", r"C:\scans\more", "--epochs", "3"),
    ]
    # what another file of the run tells
    run = make_run(tmp_path / "run", "unetr", record={"command": command})
    chosen = {"cases": ["Smith_Ann"], "dice_before": {"WT": 0.5}, "dice_after": {"WT": 0.6}}
    thresholds = {"min_component_mm3": {"TC": 0, "WT": 8, "ET": 0}, "min_et_mm3": 0}
    weights = file_digest(run / "models" / "model.pt")
    content = {"weights": weights, "single": thresholds, "chosen_on": {"single": chosen}}
    (run / "models" / "postprocessing.json").write_text(json.dumps(content))
    listed = {"dataset_dir": "/home/ann/scans", "training": [{"case": "Smith_Ann", "image": "a/b"}]}
    (run / "models" / "datalist.json").write_text(json.dumps(listed))

    bundle = unzipped(packed(run, "unetr", tmp_path / "dist"), tmp_path / "out")
    training = json.loads((bundle / "models" / "training.json").read_text())
    assert training["command"] == [
        *("run", "--config_file", "['train.json', 'baseline.json']"),
        *("--dataset_dir=BraTS 2021", "--bundle_root", "fold 0"),
        *("--unlabelled_dir", "more", "--epochs", "3"),
    ]
    assert training["metrics"] == METRICS
    written = json.loads((bundle / "models" / "postprocessing.json").read_text())
    assert written["single"] == thresholds
    assert written["chosen_on"]["single"] == {**chosen, "cases": [], "number_of_cases": 1}
    everything = b"".join(path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    for secret in (b"Smith", b"/home/ann", str(tmp_path).encode(), str(BUNDLES).encode()):
        assert secret not in everything

    listed_bundle = unzipped(packed(run, "unetr", tmp_path / "d", datalist=True), tmp_path / "o")
    found = json.loads((listed_bundle / "models" / "datalist.json").read_text())
    assert found == {**listed, "dataset_dir": "scans"}
    assert b"/home/ann" not in b"".join(p.read_bytes() for p in listed_bundle.rglob("*.json"))


@pytest.mark.parametrize("name", backbones())
def test_its_configs_build_the_trained_network(name: str, tmp_path: Path) -> None:
    """Without a look into training.json: MONAI Label trains with train.json alone."""
    run = make_run(tmp_path / "run", name)
    bundle = unzipped(packed(run, name, tmp_path / "dist"), tmp_path / "out")
    (bundle / "models" / "training.json").unlink()
    weights = torch.load(run / "models" / "model.pt", weights_only=True)
    for config in ("train.json", "inference.json", "evaluate.json"):
        parser = parsed(bundle, config)
        assert parser.get_parsed_content("roi_size") == [64, 64, 64]
        network = parser.get_parsed_content("network_def")
        network.load_state_dict(weights, strict=True)
        ours = backbones()[name]["network_def"]["_target_"].startswith("mod_components.")
        assert type(network).__module__.startswith(f"{PACKAGE}." if ours else "monai.")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    fixed = name in ("vit", "unetr", "unetrpp")
    assert shape == ([64, 64, 64] if fixed else backbones()[name]["spatial_shape"])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"({count / 1e6:.1f} M parameters)" in (bundle / "docs" / "README.md").read_text()


def test_a_network_unlike_the_bundles_own(tmp_path: Path) -> None:
    """Class and arguments from the command line of the training."""
    options = {
        "network_def#_target_": "mod_components.networks.ShallowUNETR",
        "network_def#num_layers": 6,
    }
    run = make_run(tmp_path / "run", "unetr", options=options)
    bundle = unzipped(packed(run, "unetr", tmp_path / "dist"), tmp_path / "out")
    expected = {"_target_": f"{PACKAGE}.networks.ShallowUNETR", "num_layers": 6}
    config = json.loads((bundle / "configs" / "train.json").read_text())
    assert config["network_def"].items() >= expected.items()
    training = json.loads((bundle / "models" / "training.json").read_text())
    assert training["settings"]["network"]["target"] == expected["_target_"]
    network = parsed(bundle, "inference.json").get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    # and what was packed can be packed again
    again = packed(bundle, "unetr", tmp_path / "again")
    assert again.read_bytes() == (tmp_path / "dist" / again.name).read_bytes()


def test_the_settings_of_the_training_are_the_bundles(tmp_path: Path) -> None:
    options = {"tap": "swinViT.layers4.0", "mask_cell": 32, "roi_size": [96, 64, 64]}
    run = make_run(tmp_path / "run", "swinunetr", roi_size=[96, 64, 64], options=options)
    bundle = unzipped(packed(run, "swinunetr", tmp_path / "dist"), tmp_path / "out")
    parser = ConfigParser(json.loads((bundle / "configs" / "train.json").read_text()))
    for key, value in options.items():
        assert parser.get_parsed_content(key) == value
    assert parser["feature_size"] == 12
    assert "output of the module `swinViT.layers4.0`" in (bundle / "docs/README.md").read_text()


def test_the_card_begins_with_what_it_was_trained_on(archive: Path, tmp_path: Path) -> None:
    bundle = unzipped(archive, tmp_path)
    lines = (bundle / "docs" / "README.md").read_text().splitlines()
    assert lines[2].startswith("**Trained on the embedded sample of synthetic brains")
    assert "do not use them on patients' scans" in lines[4]
    assert "| whole tumour | 0.7045 |" in lines
    assert f"in its own folder `{PACKAGE}`" in "\n".join(lines)
    assert (
        "Its weights were trained on the embedded sample alone"
        in (bundle / "docs" / "data_license.txt").read_text()
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]["mean_dice"] == 0.6254
    assert metadata["version"] == __version__


def test_the_folder_for_hugging_face(archive: Path, tmp_path: Path) -> None:
    bundle = unzipped(archive, tmp_path)
    folder = archive.parent / "huggingface" / "swinunetr_mod"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert found == files | {"README.md", ".gitattributes"}
    assert all((folder / path).read_bytes() == (bundle / path).read_bytes() for path in files)


def test_a_training_from_before_the_network_was_recorded(run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(run, tmp_path / "run") / "models" / "training.json"
    content = json.loads(path.read_text())
    del content["settings"]["network"]
    path.write_text(json.dumps(content))
    bundle = unzipped(packed(path.parent.parent, "swinunetr", tmp_path / "dist"), tmp_path / "out")
    one, other = (
        json.loads((folder / "models" / "training.json").read_text())["settings"]["network"]
        for folder in (bundle, run)
    )
    assert one == other


# as a chosen "training.json" could have them; none may be evaluated
EXPRESSIONS: dict[str, dict[str, Any]] = {
    "width that runs": {"feature_size": "$(open('ran', 'w'), 12)[1]"},
    "tap that runs": {"tap": "$open('ran', 'w').name"},
    "cell that runs": {"mask_cell": "$(open('ran', 'w'), 16)[1]"},
    "cell of a list": {"mask_cell": [16, "@bundle_root"]},
    "width of a file": {"feature_size": "%train.json::roi_size"},
    "width of a component": {"feature_size": {"_target_": "open", "file": "ran", "mode": "w"}},
}
WRONG_TYPES: dict[str, tuple[str, Any]] = {
    "no metrics": ("metrics", None),
    "a figure in words": ("metrics", {"val_mean_dice": "x"}),
    "versions in a list": ("versions", []),
    "command in a word": ("command", "x /home/ann"),
    "history of words": ("history", ["BraTS"]),
    "no crop": ("roi_size", None),
    "crop in a word": ("roi_size", "64"),
    "network in a list": ("network", [1]),
    "fold in a word": ("fold", "0"),
    "data in a list": ("dataset_dir", ["a"]),
}


def break_run(run: Path, how: str) -> None:
    models = run / "models"
    path = models / "training.json"
    content = json.loads(path.read_text())
    weights = torch.load(models / "model.pt", weights_only=True)
    if how == "no weights":
        (models / "model.pt").unlink()
    elif how == "no record":
        path.unlink()
    elif how == "damaged record":
        path.write_text("{")
    elif how == "another bundle":
        content["settings"]["bundle"] = "unetr_mod"
    elif how == "another width":
        content["settings"]["feature_size"] = 24
        content["settings"]["network"]["feature_size"] = 24
    elif how == "nested":
        torch.save({"state_dict": weights}, models / "model.pt")
    elif how == "pickle":
        torch.save({"a": Path("x")}, models / "model.pt")
    elif how == "one tensor less":
        weights.popitem()
        torch.save(weights, models / "model.pt")
    elif how == "code of others":
        content["settings"]["network"]["target"] = "os.system"
    elif how == "expression":
        content["settings"]["network"]["feature_size"] = "$print('run')"
    elif how in EXPRESSIONS:
        del content["settings"]["network"]
        content["settings"] |= EXPRESSIONS[how]
    elif how == "component in an argument":
        content["settings"]["network"]["norm_name"] = {"_target_": "os.getcwd"}
    elif how == "component beside the class":
        content["settings"]["network"]["_target_"] = "os.getcwd"
    elif how == "function of Python":
        content["settings"]["network"] = {"target": "open", "file": "x", "mode": "w"}
    elif how in WRONG_TYPES:
        place, value = WRONG_TYPES[how]
        (content["settings"] if place in content["settings"] else content)[place] = value
    elif how == "number that is none":
        content["settings"]["learning_rate"] = float("nan")
    elif how == "thresholds of no cases":
        (models / "postprocessing.json").write_text('{"chosen_on": []}')
    elif how == "thresholds of other weights":
        (models / "postprocessing.json").write_text('{"weights": "0123456789abcdef"}')
    elif how == "no such network":
        content["settings"]["network"]["depths"] = "two"
    if path.is_file() and how != "damaged record":
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", r"model\.pt does not exist: train first, with 'python -m monai\.bundle run"),
        ("no record", r"training\.json does not exist: train first"),
        ("damaged record", r"training\.json cannot be read"),
        ("another bundle", r"tells of a training of unetr_mod, not of swinunetr_mod"),
        ("another width", r"model\.pt does not fit SwinUNETR"),
        ("nested", r"model\.pt is not a flat state_dict: save network\.state_dict\(\) itself"),
        ("pickle", r"model\.pt cannot be read as plain weights"),
        ("one tensor less", r"model\.pt does not fit SwinUNETR: 1 of"),
        ("code of others", r"the network is a os\.system, and a packed bundle brings MONAI's"),
        ("expression", r"an argument of the network is an expression"),
        ("component in an argument", r"an argument of the network is an expression"),
        ("component beside the class", r"an argument of the network is an expression"),
        ("function of Python", r"the network is a open, and a packed bundle brings MONAI's"),
        *((how, rf"setting {next(iter(s))} is an expression") for how, s in EXPRESSIONS.items()),
        *(
            (how, rf"does not hold what a training writes \((settings#)?{place}\): restore")
            for how, (place, _) in WRONG_TYPES.items()
        ),
        ("number that is none", r"training\.json holds a number that JSON does not have"),
        ("thresholds of other weights", r"postprocessing\.json was not made for .*model\.pt as it"),
        ("thresholds of no cases", r"postprocessing\.json cannot be read .*: make it again"),
        ("no such network", r"the network that it tells of can't be built"),
    ],
)
def test_a_training_that_cannot_be_packed(
    how: str, message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    break_run(tmp_path / "run", how)
    with pytest.raises(CheckpointError, match=message):
        packed(tmp_path / "run", "swinunetr", tmp_path / "dist")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("")
    with pytest.raises(SettingsError, match=r"dist cannot be written .*: give --dist a folder"):
        packed(run, "swinunetr", tmp_path / "dist")


def test_a_fold_that_was_not_given_and_a_figure_that_is_none(tmp_path: Path) -> None:
    metrics = {**METRICS, "val_dice_et": float("nan")}
    run = make_run(
        tmp_path / "run", "swinunetr", settings={"fold": None}, record={"metrics": metrics}
    )
    bundle = unzipped(packed(run, "swinunetr", tmp_path / "dist"), tmp_path / "out")
    assert "fold -1 (the data set's own split" in (bundle / "docs" / "README.md").read_text()
    for path in bundle.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    training = json.loads((bundle / "models" / "training.json").read_text())
    assert set(training["metrics"]) == set(METRICS) - {"val_dice_et"}


def write_tables(run: Path, epochs: int = 3, dice: float = METRICS["val_mean_dice"]) -> None:
    """``eval/`` of the training that ``make_run`` tells of: its best epoch is the second."""
    rows = [f"{epoch},{1 / epoch:.6g},{2 / epoch:.6g}\n" for epoch in range(1, epochs + 1)]
    (run / "eval" / "train.csv").write_text("epoch,loss_seg,loss_token\n" + "".join(rows))
    table = f"epoch,val_mean_dice\n1,0.5\n2,{dice:.6g}\n3,0.6\n"
    (run / "eval" / "validation.csv").write_text(table)


def test_curves_are_drawn_from_the_tables_of_the_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "swinunetr")
    write_tables(run)
    archive = packed(run, "swinunetr", tmp_path / "dist")
    bundle = unzipped(archive, tmp_path / "out")
    picture = (bundle / "docs" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"atplotlib" not in picture
    assert "](curves.png)" in (bundle / "docs" / "README.md").read_text()
    folder = tmp_path / "dist" / "huggingface" / "swinunetr_mod"
    assert "](docs/curves.png)" in (folder / "README.md").read_text()
    # from the tables again, and from the packed bundle, which has none
    for source, dist in ((run, "second"), (bundle, "third")):
        again = packed(source, "swinunetr", tmp_path / dist)
        assert again.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("how", ["another figure", "too short", "no validation", "no table"])
def test_curves_of_another_training_are_not_shown(how: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "swinunetr")
    if how == "no table":
        (run / "eval" / "train.csv").write_text("no,\x00")
    else:
        write_tables(
            run, 1 if how == "too short" else 3, 0.9 if how == "another figure" else 0.625373
        )
    if how == "no validation":
        (run / "eval" / "validation.csv").unlink()
    bundle = unzipped(packed(run, "swinunetr", tmp_path / "dist"), tmp_path / "out")
    assert not (bundle / "docs" / "curves.png").exists()
    assert "curves.png" not in (bundle / "docs" / "README.md").read_text()


def test_a_row_of_ones_own(tmp_path: Path) -> None:
    row = {**backbones()["swinunetr"], "title": "Mine"}
    table = tmp_path / "rows.json"
    table.write_text(json.dumps({"mine": row}))
    render(tmp_path / "bundles", table=backbones(table))
    run = make_run(tmp_path / "run", "swinunetr", settings={"bundle": "mine_mod"})
    done = run_python(
        *("-m", "mod_components", "pack", "mine_mod", "--run", run, "--table", table),
        *("--bundles", tmp_path / "bundles", "--dist", tmp_path / "dist"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    bundle = unzipped(tmp_path / "dist" / f"mine_mod_v{__version__}.zip", tmp_path / "out")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["name"] == "Mine with MOD"


def test_the_bundle_must_be_as_rendered(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no bundle 'unet' to pack; there are .*swinunetr"):
        packed(run, "unet", tmp_path / "dist")
    render(tmp_path, ["swinunetr"])
    (tmp_path / "swinunetr_mod" / "configs" / "train.json").write_text("{}")
    (tmp_path / "swinunetr_mod" / "LICENSE").unlink()
    with pytest.raises(
        SettingsError, match=r"\(LICENSE, configs/train\.json\): run 'python -m mod"
    ):
        pack("swinunetr", bundles=tmp_path, run=run, dist=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_the_version_must_be_told_of(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mod_components.release.pack.__version__", "9.9.9")
    with pytest.raises(SettingsError, match=r"no entry for version 9\.9\.9 in its changelog"):
        packed(run, "swinunetr", tmp_path / "dist")


def test_all_or_none(tmp_path: Path) -> None:
    render(tmp_path)
    make_run(tmp_path / "vit_mod", "vit")
    with pytest.raises(
        CheckpointError, match=r"5 bundles in .*: unetr, unetrpp, swinunetr,"
    ) as told:
        pack_all(bundles=tmp_path, dist=tmp_path / "dist")
    assert len(re.findall("monai.bundle run --config_file", str(told.value))) == 5
    assert not (tmp_path / "dist").exists()
    for name in backbones():
        make_run(tmp_path / f"{name}_mod", name)
    zips = pack_all(bundles=tmp_path, dist=tmp_path / "dist")
    assert {path.name for path in zips} == {f"{n}_mod_v{__version__}.zip" for n in backbones()}
    assert len(json.loads((tmp_path / "dist" / "model_info.json").read_text())) == 6
