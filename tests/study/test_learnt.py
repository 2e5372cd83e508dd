"""What the losses learnt, against figures worked out by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from mod_components.study import Run
from mod_components.study.learnt import learnt_table
from mod_components.study.results import read_study
from mod_components.study.tables import Table
from tests.study.made_up import make_study

EPOCHS = 10


def information(seed: int) -> list[float]:
    return [0.1 * seed * (epoch % 4) for epoch in range(EPOCHS)]


def spread(seed: int) -> list[float]:
    return [4.0 - seed * (epoch == 3) for epoch in range(EPOCHS)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    def logged(run: Run, content: dict[str, Any]) -> None:
        content["losses"] = [
            {"update": 10 * epoch + 10, "loss": 1.0, "recon_gain": None} for epoch in range(EPOCHS)
        ]
        if run.arm == "baseline":
            return
        for epoch, row in enumerate(content["losses"]):
            row["recon_gain"] = 0.01 * epoch
            if run.arm == "mod":
                row["class_information"] = information(run.seed)[epoch]
                row["class_marginal_entropy"] = spread(run.seed)[epoch]
                row["loss_class"] = 3.0 - run.seed * epoch / EPOCHS

    folder = tmp_path_factory.mktemp("learnt") / "study"
    plan = {"bundles": ["vit_mod"], "labelled": [5], "folds": [0], "seeds": [1, 2, 3]}
    table = learnt_table(read_study(make_study(folder, logged, **plan)).runs)
    assert table is not None
    return table


def test_arms_without_such_figures_are_left_out(table: Table) -> None:
    assert [row["arm"] for row in table.rows] == ["mod", "scans"]
    assert table.cells[1][4:] == ["–", "–", "–", "–", "9 (9 to 9)"]


def test_figures_over_epochs_and_runs(table: Table) -> None:
    row = table.rows[0]
    medians = [statistics.median(information(seed)[2:]) for seed in (1, 2, 3)]
    assert row["class_information"] == pytest.approx(statistics.mean(medians))
    assert row["class_information_least"] == pytest.approx(min(medians))
    assert row["class_information_most"] == pytest.approx(max(medians))
    assert row["class_marginal_entropy"] == pytest.approx(4 - 2)
    assert row["loss_class"] == pytest.approx(3 - 2 * 0.9)
    assert row["recon_gain"] == pytest.approx(9)
    assert table.cells[0][3:7] == ["3", "–", "0.30 (0.15 to 0.45)", "2.00 (1.00 to 3.00)"]


def test_plain_trainings_have_no_such_table(tmp_path: Path) -> None:
    assert learnt_table(read_study(make_study(tmp_path)).runs) is None
