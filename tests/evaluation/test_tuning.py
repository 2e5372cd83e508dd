"""Thresholds come from other folds than those they are judged on."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mod_components.data import make_datalist, save_datalist, select
from mod_components.errors import DataError, SettingsError
from mod_components.evaluation import refuse_own_cases
from mod_components.evaluation.tuning import table, tune
from mod_components.files import file_digest
from mod_components.release.privacy import without_case_ids
from tests.data.folders import write_case, write_volume


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
        (run / "models" / "model.pt").write_bytes(bytes([fold]))
        held_out = select(datalist, fold)[1]
        for case in held_out:
            pred = truth.copy()
            if dirty:
                pred[12:15, 12:15, 12:15] = 2
            write_volume(run / "eval" / f"{case['case']}_seg.nii.gz", pred)
        notes = {"checkpoints": 1, "weights": file_digest(run / "models" / "model.pt")}
        (run / "eval" / "summary.json").write_text(json.dumps({"notes": notes}))
        dice = 2 * 343 / (2 * 343 + 27 * dirty)
        rows = "".join(f"{case['case']},{dice:.6g}\n" for case in held_out)
        (run / "eval" / "metrics_per_case.csv").write_text("case,dice_wt\n" + rows)
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
    every = {f"Case_{index}" for index in range(6)}
    own = {path.name[:6] for path in (runs[0] / "eval").glob("*_seg.nii.gz")}
    assert set(stored[0]["chosen_on"]["single"]["cases"]) == every - own
    assert set(stored[0]["chosen_on"]["ensemble"]["cases"]) == every
    assert "(6 cases)" in table(report).splitlines()[-1]
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
    with pytest.raises(
        DataError, match=rf"{path.name} can't be read .*Case_.: evaluate the run again"
    ):
        tune(runs)


def test_maps_that_are_not_those_that_were_evaluated(tmp_path: Path) -> None:
    """Inference writes files of the same names into the same folder."""
    runs = make_runs(tmp_path)
    path = next((runs[2] / "eval").glob("*_seg.nii.gz"))
    before = path.read_bytes()
    tune(runs)
    write_volume(path, np.asarray(nib.load(path).dataobj) * (np.arange(16) < 12))
    with pytest.raises(
        DataError,
        match=r"is not the label map that was evaluated: its Dice of WT is 1\.0000, .* 0\.9621",
    ):
        tune(runs)
    path.write_bytes(before)
    tune(runs)


def test_shapes_must_fit(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    path = next((runs[2] / "eval").glob("*_seg.nii.gz"))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    with pytest.raises(DataError, match="not on the grid of"):
        tune(runs)


def test_a_case_that_was_not_evaluated_is_left_out(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    path = runs[2] / "eval" / "metrics_per_case.csv"
    header, gone, kept = path.read_text().splitlines()
    path.write_text(f"{header}\n{kept}\n")
    assert gone[:6] not in tune(runs)["ensemble"]["cases"]


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    (runs[1] / "models" / "model.pt").write_bytes(b"trained again")
    with pytest.raises(DataError, match=r"is not an evaluation of .*model.pt as it is"):
        tune(runs)


def test_data_that_have_moved_and_folders_that_are_no_runs(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"does not exist.*--dataset_dir"):
        tune(runs)
    assert len(tune(runs, tmp_path / "moved")["ensemble"]["cases"]) == 6
    with pytest.raises(DataError, match="nowhere is not the folder of a trained run"):
        tune([runs[0], tmp_path / "nowhere"], tmp_path / "moved")


def test_thresholds_are_not_judged_on_their_own_cases(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    tune(runs)
    models = [str(run / "models" / "model.pt") for run in runs]
    own = [{"case": path.name[:6]} for path in (runs[0] / "eval").glob("*_seg.nii.gz")]
    refuse_own_cases(models[:1], own)  # chosen on the other folds
    with pytest.raises(DataError, match=r"thresholds \(ensemble\) were chosen on 2 of these"):
        refuse_own_cases(models, own)
    with pytest.raises(DataError, match=r"thresholds \(single\) were chosen on 2 of these"):
        refuse_own_cases(models[1:2], own)
    refuse_own_cases(models, [{"case": "New"}])
    refuse_own_cases(models, own, other_data=True)  # other patients of the same ids
    Path(models[0]).write_bytes(b"trained again")
    with pytest.raises(DataError, match=r"was not made for .*model.pt as it is"):
        refuse_own_cases(models, [{"case": "New"}])


def test_thresholds_that_do_not_name_their_cases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As they are packed: ids can be names of patients."""
    runs = make_runs(tmp_path)
    tune(runs)
    path = runs[0] / "models" / "postprocessing.json"
    path.write_text(json.dumps(without_case_ids(json.loads(path.read_text()))))
    refuse_own_cases([str(path.with_name("model.pt"))], [{"case": "Case_0"}])
    assert "whether they are among these is not known" in caplog.text


def test_label_maps_with_a_slope_and_cut_short(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, specks=(False, False, False))
    for path in (tmp_path / "data").rglob("*_seg.nii.gz"):
        image = nib.load(path)
        codes = np.asarray(image.dataobj)
        scaled = nib.Nifti1Image(codes * np.uint8(25), np.eye(4))
        scaled.header.set_slope_inter(1 / 25, 0)
        nib.save(scaled, path)
        read = nib.load(path).get_fdata()
        assert np.allclose(read, codes, atol=1e-6)
    assert set(tune(runs)["ensemble"]["dice_before"].values()) == {1.0}
    path = next((runs[0] / "eval").glob("*_seg.nii.gz"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{path.name} can't be read"):
        tune(runs)
