"""Pictures of held-out cases: chosen by the baseline, of one pair of runs, on the right grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mod_components.data import read_folder
from mod_components.data.sample import make_sample
from mod_components.study import Run
from mod_components.study.panels import TRUTH, load_shown, planes, surfaces
from mod_components.study.report import write_report
from mod_components.study.results import read_study
from tests.study.made_up import make_study

ARMS: dict[str, Any] = {"baseline": {"use_mod": False}, "mod": {}}


@pytest.fixture(scope="module")
def sample() -> Path:
    return Path(make_sample())


@pytest.fixture(scope="module")
def study(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the embedded sample: the baseline finds nothing, MOD finds the truth."""
    _, records = read_folder(sample)
    cases = {record.case: record for record in records if record.label}
    chosen = sorted(cases)[:3]

    def own_cases(run: Run, content: dict[str, Any]) -> None:
        levels = (0.9, 0.1, 0.5) if run.arm == "baseline" else (0.6, 0.7, 0.8)
        row = next(iter(content["scores"].values()))
        content["scores"] = {
            case: {k: level if k.startswith("dice") else 5.0 for k in row}
            for case, level in zip(chosen, levels, strict=True)
        }

    folder = tmp_path_factory.mktemp("panels") / "study"
    make_study(folder, change=own_cases, arms=ARMS, bundles=["unetr_mod"], dataset_dir=str(sample))
    for run in read_study(folder).planned:
        for case in chosen:
            truth = nib.load(cases[case].label)
            labels = np.asarray(truth.dataobj, np.uint8) * (run.arm == "mod")
            path = folder / run.folder / "test" / f"{case}_seg.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(labels, truth.affine), path)
    return folder


def test_the_baseline_chooses_the_cases(study: Path, sample: Path) -> None:
    shown = load_shown(study, read_study(study).runs, sample)
    assert [case.why for case in shown] == ["lower quartile", "median", "upper quartile"]
    assert [case.dice["baseline"] for case in shown] == sorted(c.dice["baseline"] for c in shown)
    assert shown[1].dice == pytest.approx({"baseline": 0.5, "mod": 0.8})


def test_masks_are_those_of_the_arms(study: Path, sample: Path) -> None:
    for case in load_shown(study, read_study(study).runs, sample):
        assert list(case.masks) == [TRUTH, "baseline", "mod"]
        assert case.masks[TRUTH].any()
        assert not case.masks["baseline"].any()
        np.testing.assert_array_equal(case.masks["mod"], case.masks[TRUTH])
        assert case.flair.shape == case.masks["mod"].shape[1:]


def test_figures_name_arms_and_dice(study: Path, sample: Path) -> None:
    shown = load_shown(study, read_study(study).runs, sample)
    rows = {"planes": len(shown), "surfaces": 2}
    for name, figure in (("planes", planes(shown)), ("surfaces", surfaces(shown[1]))):
        assert len(figure.axes) == 3 * rows[name]
        assert [axes.get_title() for axes in figure.axes[:3]] == [TRUTH, "baseline", "mod"]
        assert figure.axes[1].get_xlabel().startswith("Dice ")
        drawn = [np.asarray(axes.images[0].get_array(), float) for axes in figure.axes[:3]]
        np.testing.assert_array_equal(drawn[0], drawn[2])
        assert not np.array_equal(drawn[0], drawn[1])


def test_a_report_has_them_and_does_without(study: Path, tmp_path: Path) -> None:
    paths = {path.name for path in write_report(study, str(tmp_path / "with"))}
    assert {"planes_unetr.png", "surfaces_unetr.png"} <= paths
    runs = read_study(study).runs
    assert load_shown(study, runs, tmp_path / "nowhere") == []
    assert load_shown(tmp_path, runs, make_sample()) == [], "no label maps"
