"""Thresholds: their effect is exact, they pay or stay at 0, and they come from other folds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mod_components.data import make_datalist, save_datalist, select
from mod_components.data.layouts import REGIONS
from mod_components.errors import DataError, SettingsError
from mod_components.evaluation.tuning import (
    NONE,
    SIZES_MM3,
    TOTALS_MM3,
    Thresholds,
    choose,
    components,
    mean_dice,
    tune,
)
from tests.data.folders import write_case, write_volume


def blobs(rng: np.random.Generator, level: float, size: int = 20) -> np.ndarray:
    """Random nested regions TC, WT, ET (3, D, H, W) with many small components."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size, size)), 1.2)
    field = (field - field.mean()) / field.std()
    return np.stack([field > level + 0.4, field > level, field > level + 0.8])


def remove_small(mask: np.ndarray, voxels: float) -> np.ndarray:
    """Component by component."""
    parts, number = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.zeros_like(mask)
    for part in range(1, number + 1):
        if (parts == part).sum() >= voxels:
            kept |= parts == part
    return kept


def by_hand(pred: np.ndarray, truth: np.ndarray, voxel: float, t: Thresholds) -> list[float]:
    """Dice of WT, TC, ET by doing on the masks what the table only counts."""
    smallest = {region: size / voxel for region, size in t.min_component_mm3.items()}
    whole = remove_small(pred[1], smallest["WT"])
    core = remove_small(pred[0] & whole, smallest["TC"])
    enhancing = remove_small(pred[2] & core, smallest["ET"])
    if enhancing.sum() < t.min_et_mm3 / voxel:
        enhancing[:] = False
    scores = []
    for mask, true in ((whole, truth[1]), (core, truth[0]), (enhancing, truth[2])):
        total = mask.sum() + true.sum()
        scores.append(2 * (mask & true).sum() / total if total else 1.0)
    return scores


@pytest.mark.parametrize("voxel", [1.0, 2.0])
def test_the_table_tells_what_removing_components_does(voxel: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4):
        pred, truth = blobs(rng, 1.5), blobs(rng, 1.8)
        case = components(pred, truth, voxel)
        assert len(case["WT"].size) > 10
        for _ in range(8):
            sizes = {region: float(rng.choice([0, 2, 5, 10, 20, 40])) for region in REGIONS}
            thresholds = Thresholds(sizes, float(rng.choice([0, 50, 1e6])))
            expected = by_hand(pred, truth, voxel, thresholds)
            got = mean_dice([case], thresholds)
            assert [got[r] for r in ("WT", "TC", "ET")] == pytest.approx(expected, abs=1e-9)


def test_empty_prediction_and_truth() -> None:
    empty = np.zeros((3, 4, 4, 4), bool)
    assert mean_dice([components(empty, empty, 1.0)], NONE) == {"WT": 1.0, "TC": 1.0, "ET": 1.0}


def test_false_specks_are_removed_and_a_good_prediction_is_left_alone() -> None:
    truth = np.zeros((3, 20, 20, 20), bool)
    truth[:, 2:10, 2:10, 2:10] = True
    specks = truth.copy()
    specks[1, 15:18, 15:18, 15:18] = True  # 27 mm³ of WT outside the tumour
    thresholds = choose([components(specks, truth, 1.0)] * 3)
    assert thresholds.min_component_mm3 == {"TC": 0, "WT": 32, "ET": 0}
    assert choose([components(truth, truth, 1.0)] * 3) == NONE
    assert choose([components(specks, specks, 1.0)] * 3) == NONE


def test_a_few_enhancing_voxels_in_a_tumour_without_enhancement() -> None:
    truth = np.zeros((3, 16, 16, 16), bool)
    truth[:2, 2:10, 2:10, 2:10] = True
    pred = truth.copy()
    pred[2, 2:4, 2:4, 2] = pred[2, 7:9, 7:9, 7] = True  # two pieces of 4 mm³
    thresholds = choose([components(pred, truth, 1.0)])
    assert mean_dice([components(pred, truth, 1.0)], thresholds)["ET"] == 1.0
    assert thresholds.min_component_mm3["ET"] in SIZES_MM3
    assert thresholds.min_et_mm3 in TOTALS_MM3


def make_runs(root: Path, *, specks: tuple[bool, ...] = (True, True, True)) -> list[Path]:
    """Three evaluated folds of six cases; where asked for, with false specks of 27 voxels."""
    truth = np.zeros((16, 16, 16), np.uint8)
    truth[2:9, 2:9, 2:9] = 4
    for index in range(6):
        case = f"Case_{index}"
        write_case(root / "data" / case, case)
        write_volume(root / "data" / case / f"{case}_seg.nii.gz", truth)
    datalist = make_datalist(root / "data", folds=3)
    runs = []
    for fold, dirty in enumerate(specks):
        run = root / f"fold_{fold}"
        (run / "models").mkdir(parents=True)
        save_datalist({**datalist, "fold": fold}, run / "models" / "datalist.json")
        for case in select(datalist, fold)[1]:
            pred = truth.copy()
            if dirty:
                pred[12:15, 12:15, 12:15] = 2
            write_volume(run / "eval" / f"{case['case']}_seg.nii.gz", pred)
        (run / "eval" / "summary.json").write_text(json.dumps({"notes": {"checkpoints": 1}}))
        runs.append(run)
    return runs


def test_each_run_gets_thresholds_of_the_other_folds(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, specks=(True, False, False))
    report = tune(runs)
    stored = [json.loads((run / "models" / "postprocessing.json").read_text()) for run in runs]
    # the specks of fold 0 say nothing about the thresholds that fold 0 itself is judged with
    assert stored[0]["single"]["min_component_mm3"] == {"TC": 0, "WT": 0, "ET": 0}
    for other in stored[1:]:
        assert other["single"]["min_component_mm3"] == {"TC": 0, "WT": 32, "ET": 0}
    assert all(s["ensemble"] == report["ensemble"]["thresholds"] for s in stored)
    assert stored[0]["ensemble"]["min_component_mm3"]["WT"] == 32
    assert stored[0]["chosen_on"]["single"]["cases"] == 4
    assert stored[0]["chosen_on"]["ensemble"]["cases"] == 6
    before, after = (report["ensemble"][key]["WT"] for key in ("dice_before", "dice_after"))
    assert before == pytest.approx((4 + 2 * (2 * 343 / (2 * 343 + 27))) / 6)
    assert after == 1.0


def test_what_thresholds_must_not_be_chosen_on(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with pytest.raises(SettingsError, match="at least two folds"):
        tune(runs[:1])
    with pytest.raises(SettingsError, match="both hold out Case_"):
        tune([runs[0], runs[0]])
    summary = runs[1] / "eval" / "summary.json"
    summary.write_text(json.dumps({"notes": {"post-processing": True}}))
    with pytest.raises(DataError, match=r"fold_1.*post-processed already"):
        tune(runs)
    summary.unlink()
    with pytest.raises(DataError, match=r"fold_1.*evaluate the run first"):
        tune(runs)


def test_the_fixed_validation_set_is_refused(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    splits = {"train": [f"Case_{i}" for i in range(4)], "validation": ["Case_4", "Case_5"]}
    (tmp_path / "data" / "splits.json").write_text(json.dumps(splits))
    datalist = make_datalist(tmp_path / "data")
    save_datalist({**datalist, "fold": -1}, runs[0] / "models" / "datalist.json")
    with pytest.raises(DataError, match=r"fold_0 holds out the data set's own validation cases"):
        tune(runs)


def test_a_missing_prediction_names_the_case(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    path = next((runs[2] / "eval").glob("*_seg.nii.gz"))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} does not exist: evaluate the run first"):
        tune(runs)


def test_shapes_must_fit(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    path = next((runs[2] / "eval").glob("*_seg.nii.gz"))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    with pytest.raises(DataError, match="not on the grid of"):
        tune(runs)
