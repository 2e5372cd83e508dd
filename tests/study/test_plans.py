"""The plans of the project's own study can be run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mod_components.data import make_sample
from mod_components.study import open_study

PLANS = Path(__file__).parents[2] / "docs" / "study" / "plans"
CASES = 24  # the plans ask for 15 labelled ones, others without labels, and some held out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=CASES)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.json")), ids=lambda path: path.stem)
def test_every_run_can_be_prepared(path: Path, data: Path, tmp_path: Path) -> None:
    study = open_study(path, tmp_path / path.stem, str(data))
    plan = study.plan
    assert len(study.pending()) == len(list(plan.runs())) > 0
    assert next(iter(plan.arms)) == "baseline"
    assert plan.folds == (-1,), "folds choose settings; a study reports on the validation cases"
