"""A training with unlabelled scans, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from mod_components.data import WithUnlabelled
from tests.backbones import build_network, small_settings
from tests.bundles.conftest import REPOSITORY, run_bundle, short_training

TRAIN = REPOSITORY / "bundles" / "unetr_mod" / "configs" / "train.json"


@pytest.fixture(scope="module")
def scans(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans without a label, and one that the sample trains on."""
    folder = tmp_path_factory.mktemp("scans")
    for number in (1, 2):
        source = small_sample / f"Sample_00{number}"
        (folder / f"Scan_{number}").mkdir()
        for path in source.glob("*[!g].nii.gz"):
            name = path.name.replace(source.name, f"Scan_{number}")
            shutil.copy(path, folder / f"Scan_{number}" / name)
    shutil.copytree(small_sample / "Sample_003", folder / "Sample_003")
    return folder


def test_a_training_with_unlabelled_scans(small_sample: Path, scans: Path, tmp_path: Path) -> None:
    command = [
        *short_training("unetr", small_sample, epochs=1),
        *("--unlabelled_dir", str(scans), "--bundle_root", str(tmp_path)),
    ]
    done = run_bundle(TRAIN, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 unlabelled cases for MOD's losses, 1 left out" in done.stdout + done.stderr
    story = json.loads((tmp_path / "models" / "training.json").read_text())
    assert story["settings"]["unlabelled_cases"] == 2
    assert story["iteration"] == 3  # the labelled cases alone make the epoch
    datalist = json.loads((tmp_path / "models" / "datalist.json").read_text())
    assert datalist["seen_unlabelled"] == ["Scan_1", "Scan_2"]
    network = build_network("unetr", (64, 64, 64))
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))

    again = [*command, "--resume", "true", "--epochs", "2"]
    done = run_bundle(TRAIN, *again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    last = torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (2, 6)


@pytest.mark.parametrize(("use_mod", "expected"), [("true", 2), ("false", 0)])
def test_only_mod_uses_them(
    use_mod: str, expected: int, small_sample: Path, scans: Path, tmp_path: Path
) -> None:
    workflow = ConfigWorkflow(
        str(TRAIN),
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(small_sample),
        unlabelled_dir=str(scans),
        bundle_root=str(tmp_path),
        roi_size=[64, 64, 64],
        use_mod=use_mod,
        unlabelled_ratio=2,
        num_workers=0,
        **small_settings("unetr"),
    )
    workflow.initialize()
    get = workflow.parser.get_parsed_content
    assert len(get("data").unlabelled) == expected
    dataset = get("train#dataloader").dataset
    assert isinstance(dataset, WithUnlabelled) is bool(expected)
    assert len(dataset) == 3
    if expected:
        assert dataset[0]["unlabelled"].shape == (2, 4, 64, 64, 64)
    assert workflow.check_properties() == []


def test_bad_cases_are_left_out_when_asked(small_sample: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_sample, data)
    (data / "Sample_002" / "Sample_002_t2.nii.gz").write_bytes(b"")
    command = [*short_training("unetr", data, epochs=1), "--bundle_root", str(tmp_path)]
    done = run_bundle(TRAIN, *command, cwd=tmp_path)
    assert done.returncode != 0
    assert "Sample_002_t2.nii.gz: the file is empty" in done.stderr
    assert "--skip_bad_cases true" in done.stderr
    assert not (tmp_path / "models").exists()
    done = run_bundle(TRAIN, *command, "--skip_bad_cases", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Sample_002" in done.stdout + done.stderr
    story = json.loads((tmp_path / "models" / "training.json").read_text())
    assert story["settings"]["training_cases"] == 2
