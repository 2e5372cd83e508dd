"""Bundles with prepared cases on disk train as they do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data.utils import set_rnd

from tests.backbones import small_settings
from tests.bundles.conftest import REPOSITORY, run_bundle, short_training

TRAIN = REPOSITORY / "bundles" / "swinunetr_mod" / "configs" / "train.json"


def batches(data: Path, root: Path, cache_dir: str) -> list[Any]:
    """An epoch of training, with unlabelled scans beside, and one of validation."""
    workflow = ConfigWorkflow(
        str(TRAIN),
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(data),
        bundle_root=str(root),
        roi_size=[64, 64, 64],
        num_workers=0,
        batch_size=1,
        cache_dir=cache_dir,
        **small_settings("swinunetr"),
    )
    workflow.initialize()
    found = []
    for part in ("train", "validate"):
        loader = workflow.parser.get_parsed_content(f"{part}#dataloader")
        set_rnd(loader.dataset, 3)
        torch.manual_seed(3)
        found += list(loader)
    return found


def test_batches_are_the_same(small_sample: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = batches(small_sample, tmp_path, "")
    for _ in range(2):  # an empty folder, then a full one
        for kept, plain in zip(batches(small_sample, tmp_path, str(cache)), expected, strict=True):
            assert kept["case"] == plain["case"]
            for key in ("image", "label"):
                assert torch.equal(kept[key], plain[key])
                assert torch.equal(kept[key].affine, plain[key].affine)
        assert len(list(cache.glob("*/*.pt"))) == 4  # two chains: three cases train, one validates


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_the_same(small_sample: Path, tmp_path: Path, workers: int) -> None:
    def train(name: str, *more: str) -> tuple[dict[str, torch.Tensor], str]:
        done = run_bundle(
            TRAIN,
            *short_training("swinunetr", small_sample, epochs=2),
            *("--cache_rate", "0.0", "--num_workers", str(workers)),
            *("--bundle_root", str(tmp_path / name), *more),
            cwd=tmp_path,
            threads=1,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        last = tmp_path / name / "models" / "last.pt"
        return torch.load(last, weights_only=True)["network"], done.stdout + done.stderr

    expected, log = train("plain")
    assert log.count("--cache_dir FOLDER keeps prepared cases on disk") == 1
    for name, there in (("cold", "(0 there)"), ("warm", "(3 there)")):
        weights, log = train(name, "--cache_dir", str(tmp_path / "cache"))
        assert there in log
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
