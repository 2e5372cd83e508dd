"""The how-to of cross-validation, command by command, on the sample."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mod_components.data import find_cases
from mod_components.metrics import REGIONS
from tests.bundles.conftest import REPOSITORY, run_bundle, run_python, short_training

CONFIGS = REPOSITORY / "bundles" / "unetr_mod" / "configs"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_folds_thresholds_ensemble_and_comparison(small_sample: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "runs" / f"fold_{k}" for k in range(3)]
    for k, run in enumerate(runs):
        options = [*short_training("unetr", small_sample, epochs=2), "--fold", str(k)]
        for config, more in (("train.json", options), ("evaluate.json", [])):
            done = run_bundle(CONFIGS / config, *more, "--bundle_root", str(run), cwd=tmp_path)
            assert done.returncode == 0, done.stderr[-3000:]
    held_out = [
        row.split(",")[0]
        for run in runs
        for row in (run / "eval" / "metrics_per_case.csv").read_text().splitlines()[1:]
    ]
    assert sorted(held_out) == ["Sample_001", "Sample_002", "Sample_003"]

    done = run_python("-m", "mod_components", "tune", *map(str, runs), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = json.loads((runs[0] / "models" / "postprocessing.json").read_text())
    assert set(stored["ensemble"]["min_component_mm3"]) == set(REGIONS)
    assert len(stored["chosen_on"]["ensemble"]["cases"]) == 3
    for choice in stored["chosen_on"].values():
        assert all(choice["dice_after"][r] >= choice["dice_before"][r] - 1e-9 for r in ("WT",))

    together = ["--checkpoint", str(tmp_path / "runs" / "fold_*" / "models" / "model.pt")]
    for name, more in (("plain", []), ("clean", ["--postprocess", "true"])):
        output = tmp_path / name
        done = run_bundle(
            CONFIGS / "evaluate.json",
            *together,
            *more,
            *("--output_dir", str(output), "--dataset_dir", str(small_sample)),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = (output / "metrics_per_case.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == ["Sample_004"]  # nobody trained on it
        assert (output / "report.html").is_file()

    done = run_bundle(
        CONFIGS / "inference.json",
        *together,
        *("--postprocess", "true", "--dataset_dir", str(small_sample), "--case", "Sample_004"),
        *("--output_dir", str(tmp_path / "inferred")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    inferred, evaluated = (
        np.asarray(nib.load(tmp_path / name / "Sample_004_seg.nii.gz").dataobj)
        for name in ("inferred", "clean")
    )
    np.testing.assert_array_equal(inferred, evaluated)

    done = run_python("-m", "mod_components", "compare", "plain", "clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 case" in done.stdout
    case = next(c for c in find_cases(small_sample) if c["case"] == "Sample_004")
    folder = str(Path(case["label"]).parent)
    pred = str(tmp_path / "clean" / "Sample_004_seg.nii.gz")
    done = run_python("-m", "mod_components", "view", folder, "--pred", pred, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "Sample_004.png").is_file()
