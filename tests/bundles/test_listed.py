"""``train.json`` on cases that another program lists, as MONAI Label does."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mod_components.release.pack import pack
from tests.bundles.conftest import run_python
from tests.release.runs import BUNDLES, make_run

MODALITIES = ("t1ce", "t1", "t2", "flair")
WITHOUT_PACKAGE = "import sys; sys.modules['mod_components'] = None"

# what BundleTrainTask of MONAI Label 0.8.5 passes to monai.bundle.run, step by step
TRAIN = """
import json, os, sys
import monai.bundle
from monai.bundle import ConfigParser

bundle, request = sys.argv[1], json.loads(sys.argv[2])
config_file = os.path.join(bundle, "configs", "train.json")
parser = ConfigParser()
parser.read_config(config_file)
parser.config.update({"bundle_root": bundle})
handlers = parser.get("train#handlers", [])
weights = os.path.join(bundle, "models", "model.pt")
if request["pretrained"] and os.path.exists(weights):
    loader = {"_target_": "CheckpointLoader", "load_path": weights, "strict": False}
    handlers.insert(0, {**loader, "load_dict": {"model": "$@network"}})
overrides = {
    "bundle_root": bundle,
    "train#trainer#max_epochs": request["max_epochs"],
    "train#dataset#data": request["training"],
    "device": "cpu",
    "train#handlers": handlers,
    **request["more"],
}
if request["validation"] is not None:
    overrides["validate#dataset#data"] = request["validation"]
sys.path.insert(0, bundle)
monai.bundle.run(
    run_id="run",
    init_id=None,
    final_id=None,
    meta_file=os.path.join(bundle, "configs", "metadata.json"),
    config_file=config_file,
    **overrides,
)
"""


@pytest.fixture(scope="module")
def swinunetr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of a small network with first weights."""
    folder = tmp_path_factory.mktemp("listed")
    run = make_run(folder / "run", "swinunetr")
    return pack("swinunetr", bundles=BUNDLES, run=run, dist=folder / "dist")


@pytest.fixture
def bundle(swinunetr: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(swinunetr) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "swinunetr_mod"


@pytest.fixture
def studies(small_sample: Path, tmp_path: Path) -> list[dict[str, str]]:
    """All cases in one flat folder, and the entries that MONAI Label makes of one file of each."""
    folder = tmp_path / "studies"
    labels = folder / "labels" / "final"
    labels.mkdir(parents=True)
    cases = sorted(path for path in small_sample.iterdir() if path.is_dir())
    listed = []
    for case, modality in zip(cases, MODALITIES, strict=True):  # any of the four stands for all
        for name in MODALITIES:
            shutil.copy(case / f"{case.name}_{name}.nii.gz", folder)
        image = folder / f"{case.name}_{modality}.nii.gz"
        shutil.copy(case / f"{case.name}_seg.nii.gz", labels / image.name)
        listed.append({"image": str(image), "label": str(labels / image.name)})
    return listed


def train(
    bundle: Path,
    training: list[dict[str, str]],
    validation: list[dict[str, str]] | None,
    *,
    pretrained: bool = True,
    more: Mapping[str, Any] | None = None,
) -> subprocess.CompletedProcess[str]:
    """One epoch, where this package is not installed."""
    site = bundle.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    request = {
        "pretrained": pretrained,
        "max_epochs": 1,
        "training": training,
        "validation": validation,
        "more": dict(more or {}),
    }
    arguments = ("-c", TRAIN, str(bundle), json.dumps(request))
    return run_python(*arguments, cwd=bundle.parent, threads=1, PYTHONPATH=str(site))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_listed_cases_train_into_new_weights(bundle: Path, studies: list[dict[str, str]]) -> None:
    before = weights(bundle / "models" / "model.pt")
    done = train(bundle, studies[:3], studies[3:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert not same(weights(bundle / "models" / "model.pt"), before)
    assert same(weights(bundle / "models" / "previous" / "model.pt"), before)
    story = json.loads((bundle / "models" / "training.json").read_text())
    told = {key: story["settings"][key] for key in ("dataset_dir", "pretrained", "epochs")}
    assert told == {"dataset_dir": "listed cases", "pretrained": True, "epochs": 1}
    assert (story["settings"]["training_cases"], story["settings"]["validation_cases"]) == (3, 1)
    assert story["history"] == [
        {"dataset_dir": "embedded sample", "training_cases": 12, "epochs": 3}
    ]
    assert story["iteration"] == 3
    assert 0 <= story["metrics"]["val_mean_dice"] <= 1
    # a server that is started anew takes the weights file with the shortest name
    assert [path.name for path in (bundle / "models").glob("*.pt")] == ["model.pt"]


@pytest.mark.parametrize("validation", [None, []])
def test_without_validation(
    validation: list[dict[str, str]] | None, bundle: Path, studies: list[dict[str, str]]
) -> None:
    """``val_split`` -1 leaves the config's own validation data; 0 gives an empty list."""
    before = weights(bundle / "models" / "model.pt")
    done = train(bundle, studies[:2], validation)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not same(weights(bundle / "models" / "model.pt"), before)
    story = json.loads((bundle / "models" / "training.json").read_text())
    assert (story["settings"]["training_cases"], story["settings"]["validation_cases"]) == (2, 0)
    assert story["metrics"] == {}


@pytest.mark.parametrize("pretrained", [True, False])
def test_it_goes_on_from_the_weights_of_the_bundle(
    pretrained: bool, bundle: Path, studies: list[dict[str, str]]
) -> None:
    """With a learning rate of 0 the weights stay what the training began with."""
    before = weights(bundle / "models" / "model.pt")
    done = train(bundle, studies[:1], [], pretrained=pretrained, more={"learning_rate": 0.0})
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(weights(bundle / "models" / "model.pt"), before) == pretrained
    story = json.loads((bundle / "models" / "training.json").read_text())
    assert story["settings"]["pretrained"] == pretrained
    assert ("history" in story) == pretrained


def test_a_case_that_lacks_a_modality_is_named(bundle: Path, studies: list[dict[str, str]]) -> None:
    before = (bundle / "models" / "model.pt").read_bytes()
    Path(studies[1]["image"].replace("_t1.", "_t2.")).unlink()
    done = train(bundle, studies[:3], studies[3:])
    assert done.returncode != 0
    assert "case Sample_002 in" in done.stderr
    assert "lacks T2" in done.stderr
    assert (bundle / "models" / "model.pt").read_bytes() == before
