"""What MONAI Label 0.8.5 does with ``inference.json``, and with packed bundles on a server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import SaveImaged

from mod_components import __version__
from mod_components.release.pack import pack
from tests.bundles.conftest import REPOSITORY, run_bundle, short_training
from tests.release.runs import BUNDLES, make_run

SCRIPT = REPOSITORY / "docs" / "how-to" / "monai_label.py"
PACKAGE = f"mod_components_{__version__.replace('.', '_')}"
NEW_NAMES = {"t1ce": "t1c", "t1": "t1n", "t2": "t2w", "flair": "t2f"}
CODES = {0, 1, 2, 4}


@pytest.fixture(scope="module", params=["swinunetr", "segmamba"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MONAI's network and ours, packed; small, with first weights."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(3)
    run = make_run(folder / "run", request.param)
    path = pack(request.param, bundles=BUNDLES, run=run, dist=folder / "dist")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder / f"{request.param}_mod"


@pytest.fixture(autouse=True)
def _own_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each bundle brings its own package, from a folder of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == PACKAGE:
            del sys.modules[name]


@pytest.fixture(scope="module")
def scans(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One case as four files, under new names, and as one 4D file whose axes run the other way."""
    folder = tmp_path_factory.mktemp("scans")
    case = small_sample / "Sample_002"
    parts = []
    for old, new in NEW_NAMES.items():
        source = case / f"Sample_002_{old}.nii.gz"
        for kind, name in (("siblings", f"A_{old}"), ("renamed", f"A-{new}")):
            (folder / kind).mkdir(exist_ok=True)
            shutil.copy(source, folder / kind / f"{name}.nii.gz")
        parts.append(nib.load(source))
    voxels = np.stack([np.asarray(part.dataobj) for part in parts], axis=-1)
    stack = nib.Nifti1Image(voxels, parts[0].affine).as_reoriented(
        np.array([[0, -1], [1, -1], [2, 1]])
    )
    (folder / "stacked").mkdir()
    nib.save(stack, folder / "stacked" / "A.nii.gz")
    return {
        "stacked": folder / "stacked" / "A.nii.gz",
        "siblings": folder / "siblings" / "A_t2.nii.gz",
        "renamed": folder / "renamed" / "A-t2f.nii.gz",
    }


def served(bundle: Path, image: Path) -> Any:
    """The label map of one request, by the steps of ``BundleInferTask``."""
    sys.path.insert(0, str(bundle))
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle)})
    parser.config["use_click"] = False
    network = parser.get_parsed_content("network_def", instantiate=True)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert set(network.state_dict()) == set(weights)
    network.load_state_dict(weights, strict=False)
    sys.path.remove(str(bundle))

    data: dict[str, Any] = {"image": str(image), "image_path": str(image), "device": "cpu"}
    parser.config.update({"device": "cpu"})
    for step in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        data = step(data)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    steps = parser.get_parsed_content("postprocessing", instantiate=True).transforms
    for step in steps:
        data = data if isinstance(step, SaveImaged) else step(data)
    # MONAI Label's last step resizes to this, and its writer takes this affine
    assert tuple(data["image"].meta["spatial_shape"]) == tuple(data["pred"].shape[1:])
    return data["pred"]


@pytest.mark.parametrize("kind", ["stacked", "siblings", "renamed"])
def test_the_answer_is_what_a_run_writes(
    kind: str, bundle: Path, scans: dict[str, Path], tmp_path: Path
) -> None:
    answer = served(bundle, scans[kind])
    done = run_bundle(
        bundle / "configs" / "inference.json",
        *("--dataset_dir", str(scans[kind].parent), "--output_dir", str(tmp_path)),
        *("--device", "cpu", "--label_codes", "[1,2,4]"),
        cwd=tmp_path,
        threads=1,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = nib.load(tmp_path / "A_seg.nii.gz")
    assert tuple(answer.shape) == (1, *written.shape)
    assert answer.dtype == torch.uint8
    np.testing.assert_array_equal(answer[0].numpy(), np.asarray(written.dataobj))
    np.testing.assert_allclose(answer.affine.numpy(), written.affine, atol=1e-5)
    np.testing.assert_allclose(written.affine, nib.load(scans[kind]).affine, atol=1e-5)
    codes = set(np.unique(answer))
    assert codes <= CODES
    assert len(codes) > 1


def test_one_file_and_four_have_one_answer(bundle: Path, scans: dict[str, Path]) -> None:
    stacked, siblings = (served(bundle, scans[kind])[0].numpy() for kind in ("stacked", "siblings"))
    np.testing.assert_array_equal(stacked[::-1, ::-1], siblings)


def test_the_labels_that_it_shows(bundle: Path) -> None:
    metadata = ConfigParser.load_config_file(str(bundle / "configs" / "metadata.json"))
    told = next(iter(metadata["network_data_format"]["outputs"].values()))["channel_def"]
    labels = {name.lower(): int(code) for code, name in told.items() if name != "background"}
    assert labels == {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("monai_label", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../x", "leads elsewhere: do not use it"),
        ("/x", "leads elsewhere"),
        ("a\\..\\x", "leads elsewhere"),
        ("C:/x", "leads elsewhere"),
        ("link", "leads elsewhere"),
        (".", "leads elsewhere"),
        ("b/x", "has 2 top folders, not one"),
        ("a/x", "would unpack to more than 0 GiB"),
    ],
)
def test_the_script_refuses_hostile_zips(
    entry: str,
    message: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/y", "")
        info = zipfile.ZipInfo(entry)
        if entry == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "z")
    if entry == "a/x":
        monkeypatch.setattr(script, "LARGEST", 0)
    models = tmp_path / "models"
    models.mkdir()
    with pytest.raises(script.UserError, match=message):
        script.put_bundle(script.Place(tmp_path / "place"), str(path), models, False)
    assert not list(models.iterdir())
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.zip", "models"]


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "check", str(tmp_path / "none"), "x.zip"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: ")
    assert "holds no MONAI Label yet: run 'setup' with it first." in done.stdout
    assert not (tmp_path / "none").exists()


PACKED = {
    "LICENSE": "",
    "configs/metadata.json": "{}",
    "configs/inference.json": "{}",
    "configs/train.json": f'{{"data": "${PACKAGE}.data.listed"}}',
    "models/model.pt": "new weights",
    f"{PACKAGE}/__init__.py": "",
}


@pytest.fixture
def server(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place with no environment, whose app has one bundle, trained."""
    monkeypatch.setattr(script, "add_packages", lambda place, bundle: None)
    place = script.Place(tmp_path / "label")
    fill(place.app / "model" / "x_mod", PACKED | {"models/model.pt": "trained weights"})
    return place


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def zipped(path: Path, files: dict[str, str] = PACKED) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"x_mod/{name}", text)
    return path


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_replaced_bundle_is_kept(
    kind: str,
    script: ModuleType,
    server: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = server.app / "model"
    source = zipped(tmp_path / "x.zip") if kind == "zip" else fill(tmp_path / "x_mod", PACKED)
    assert script.put_bundle(server, str(source), models, False) == "x_mod"
    assert content(models)["x_mod/models/model.pt"] == "trained weights"
    for number, weights in enumerate(("trained weights", "new weights"), start=1):
        assert script.put_bundle(server, str(source), models, True) == "x_mod"
        assert content(models) == {f"x_mod/{name}": text for name, text in PACKED.items()}
        old = server.folder / "replaced" / str(number) / "x_mod"
        assert content(old) == PACKED | {"models/model.pt": weights}
        assert f"is now {old}" in capsys.readouterr().out
    assert sorted(path.name for path in server.folder.iterdir()) == ["apps", "replaced"]


@pytest.mark.parametrize("kind", ["itself", "link", "inside", "around"])
def test_a_bundle_does_not_replace_itself(
    kind: str, script: ModuleType, server: Any, tmp_path: Path
) -> None:
    models = server.app / "model"
    source = models / "x_mod"
    if kind == "link":
        source = tmp_path / "x_mod"
        source.symlink_to(models / "x_mod")
    elif kind == "inside":
        source = fill(models / "x_mod" / "x_mod", PACKED)
    elif kind == "around":
        source = fill(server.folder, PACKED)
    before = content(server.folder)
    with pytest.raises(script.UserError, match="one lies in the other: leave out --replace"):
        script.put_bundle(server, str(source), models, True)
    assert content(server.folder) == before


def damaged(path: Path, kind: str) -> Path:
    """A zip whose weights can't be read, or that lacks something."""
    if kind in PACKED:
        return zipped(path, {name: text for name, text in PACKED.items() if name != kind})
    if kind == "torn json":
        return zipped(path, PACKED | {"configs/metadata.json": '{"version": '})
    if kind == "repository":
        named = PACKED["configs/train.json"].replace(PACKAGE, "mod_components")
        return zipped(path, PACKED | {"configs/train.json": named})
    data = bytearray(zipped(path).read_bytes())
    if kind == "cut short":
        del data[-40:]
    elif kind == "flipped bit":
        data[data.index(b"new weights")] ^= 1
    else:
        # flags and method in the zip's directory
        entry = data.index(b"PK\x01\x02")
        position, value = {"encrypted": (8, 1), "unknown method": (10, 99)}[kind]
        data[entry + position] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut short", "no whole zip"),
        ("flipped bit", "damaged or encrypted .*Bad CRC-32"),
        ("encrypted", "damaged or encrypted"),
        ("unknown method", "damaged or encrypted"),
        ("torn json", "damaged or encrypted .*Expecting value"),
        ("configs/metadata.json", "has no configs/metadata.json: pack the bundle first"),
        ("configs/inference.json", "has no configs/inference.json"),
        ("configs/train.json", "has no configs/train.json"),
        ("models/model.pt", "has no models/model.pt"),
        (f"{PACKAGE}/__init__.py", "has no package mod_components_VERSION of its own: pack"),
        ("repository", "has no package mod_components_VERSION of its own: pack"),
    ],
)
def test_a_bundle_that_is_not_whole_replaces_nothing(
    kind: str, message: str, script: ModuleType, server: Any, tmp_path: Path
) -> None:
    source = damaged(tmp_path / "x.zip", kind)
    before = content(server.folder)
    with pytest.raises(script.UserError, match=message) as caught:
        script.put_bundle(server, str(source), server.app / "model", True)
    assert str(source) in str(caught.value)
    assert content(server.folder) == before
    assert [path.name for path in server.folder.iterdir()] == ["apps"]


def test_what_is_served_must_bring_its_code(script: ModuleType, server: Any) -> None:
    models = server.app / "model"
    shutil.rmtree(models / "x_mod" / PACKAGE)
    with pytest.raises(script.UserError, match=r"x_mod has no package .*with --replace"):
        script.put_bundle(server, str(zipped(server.folder / "x.zip")), models, False)


@pytest.mark.parametrize("package", [True, False])
def test_only_packed_bundles_are_taken(
    package: bool, bundle: Path, script: ModuleType, server: Any, tmp_path: Path
) -> None:
    models = server.app / "model"
    if package:
        name = script.put_bundle(server, str(bundle), models, False)
        assert (models / name / PACKAGE / "__init__.py").is_file()
        return
    unpacked = shutil.copytree(BUNDLES / bundle.name, tmp_path / bundle.name)
    shutil.copytree(bundle / "models", unpacked / "models", dirs_exist_ok=True)
    with pytest.raises(script.UserError, match="of its own: pack the bundle first"):
        script.put_bundle(server, str(unpacked), models, False)
    assert [path.name for path in models.iterdir()] == ["x_mod"]


def test_a_damaged_zip_is_one_line(server: Any, tmp_path: Path) -> None:
    server.ready.parent.mkdir()
    server.ready.touch()
    source = damaged(tmp_path / "x.zip", "flipped bit")
    options = ("--studies", str(tmp_path), "--replace")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "serve", str(server.folder), str(source), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {source} is damaged or encrypted (")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="MONAI Label 0.8.5 needs Python 3.10/3.11")
@pytest.mark.timeout(5400)
def test_two_bundles_on_one_server(tmp_path: Path, small_sample: Path) -> None:
    """The how-to's script sets MONAI Label up, segments and trains, and says PASS."""
    zips = []
    for name in ("swinunetr", "segmamba"):
        run = tmp_path / "runs" / name
        done = run_bundle(
            BUNDLES / f"{name}_mod" / "configs" / "train.json",
            *short_training(name, small_sample, epochs=1),
            *("--bundle_root", str(run)),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        zips.append(str(pack(name, bundles=BUNDLES, run=run, dist=tmp_path / "dist")))
    folder = tmp_path / "label"
    run_script("setup", str(folder))
    output = run_script("check", str(folder), *zips)
    assert output.strip().splitlines()[-1] == "PASS"
    assert output.count("as monai.bundle run writes it") == 12


def run_script(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout
