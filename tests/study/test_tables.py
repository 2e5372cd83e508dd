"""Tables say in %, mm and – what the statistics found, and the files hold the same numbers."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from mod_components.study import Run
from mod_components.study.published import caveats, published_tables
from mod_components.study.results import Finished, StudyResults, read_study
from mod_components.study.statistics import differences
from mod_components.study.tables import (
    Table,
    catch_up_table,
    cost_table,
    count_table,
    difference_table,
    level_table,
    progress_table,
    score_table,
    show,
)
from tests.study.made_up import make_study


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read_study(make_study(tmp_path_factory.mktemp("tables") / "study"))


def of(results: StudyResults, bundle: str, arm: str, labelled: int) -> list[Finished]:
    wanted = (bundle, arm, labelled)
    return [f for f in results.runs if (f.run.bundle, f.run.arm, f.run.labelled) == wanted]


def line_of(table: Table, *start: str) -> list[str]:
    (line,) = [list(line) for line in table.cells if tuple(line[: len(start)]) == start]
    return line


def written(table: Table, folder: Path) -> list[dict[str, str]]:
    path = table.write(folder)
    assert path.name == f"{table.name}.csv"
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_numbers_to_read() -> None:
    assert [show(1.04, 1), show(-0.001), show(math.nan)] == ["1.0", "0.00", "–"]
    assert [show(0.5, 1, sign=True), show(-0.5, 1, sign=True)] == ["+0.5", "-0.5"]


def test_scores_are_of_all_cases_in_percent_and_mm(results: StudyResults, tmp_path: Path) -> None:
    table = score_table(results.runs, "scores", "Scores")
    assert len(table.cells) == 12, "two networks, two numbers of cases and three arms"
    own = of(results, "unetr_mod", "mod", 0)
    dice = [100 * run.mean("dice_wt") for run in own]
    distance = [run.mean("hd95") for run in own]
    line = line_of(table, "unetr", "all", "mod")
    assert line[3] == "4"
    assert line[5] == f"{statistics.mean(dice):.2f} ± {statistics.stdev(dice):.2f}"
    assert line[-1] == f"{statistics.mean(distance):.2f} ± {statistics.stdev(distance):.2f}"
    assert table.header[4:] == [
        *("Dice TC", "Dice WT", "Dice ET", "Dice avg"),
        *("HD95 TC", "HD95 WT", "HD95 ET", "HD95 avg"),
    ]
    row = written(table, tmp_path)[4]
    assert (row["network"], row["arm"], row["labelled"], row["runs"]) == ("unetr", "mod", "0", "4")
    assert float(row["dice_wt"]) == pytest.approx(statistics.mean(dice), rel=1e-5)
    assert float(row["hd95_sd"]) == pytest.approx(statistics.stdev(distance), rel=1e-5)


def test_markdown_has_a_rule_that_puts_numbers_to_the_right(results: StudyResults) -> None:
    lines = score_table(results.runs, "scores", "Scores").markdown()
    assert lines[0] == "### Scores"
    assert lines[2].startswith("Dice in %, HD95 in mm")
    assert lines[4].startswith("| network | labelled | arm | runs | Dice TC |")
    assert lines[5] == "| --- | ---: | --- |" + " ---: |" * 9
    assert len(lines) == 6 + 12


def test_dice_by_number_of_labelled_cases(results: StudyResults, tmp_path: Path) -> None:
    table = count_table(results.runs)
    assert table.header == ["network", "arm", "5", "all"]
    few, every = (
        statistics.mean(100 * run.mean("dice") for run in of(results, "vit_mod", "scans", count))
        for count in (5, 0)
    )
    line = line_of(table, "vit", "scans")
    assert [cell.split(" ± ")[0] for cell in line[2:]] == [f"{few:.2f}", f"{every:.2f}"]
    assert [row["labelled"] for row in written(table, tmp_path)] == ["5"] * 3 + ["0"] * 3 + [
        *["5"] * 3,
        *["0"] * 3,
    ]


def test_a_number_of_cases_that_an_arm_has_not_run(tmp_path: Path) -> None:
    def skip(run: Run) -> bool:
        return run.arm == "mod" and run.labelled == 5

    line = line_of(count_table(read_study(make_study(tmp_path, skip=skip)).runs), "vit", "mod")
    assert line[2] == "–"
    assert line[3] != "–"


def test_paired_differences(results: StudyResults, tmp_path: Path) -> None:
    found = differences(results.runs, "baseline")
    table = difference_table(found, "baseline")
    assert len(table.cells) == 2 * 2 * 2 * 2, "mean Dice and HD95 alone are to read"
    (dice,) = [
        d
        for d in found
        if (d.bundle, d.labelled, d.arm, d.metric) == ("unetr_mod", 5, "mod", "dice")
    ]
    line = line_of(table, "unetr", "5", "mod", "Dice (%)")
    assert line[4:7] == [
        "4",
        f"{100 * dice.mean:+.2f}",
        f"[{100 * dice.t_low:+.2f}, {100 * dice.t_high:+.2f}]",
    ]
    assert line[-1] == f"{dice.p_holm:.4f}"
    rows = written(table, tmp_path)
    assert len(rows) == len(found)
    assert float(rows[0]["both_low"]) == pytest.approx(100 * found[0].both_low, rel=1e-5)
    assert float(rows[4]["mean"]) == pytest.approx(found[4].mean, rel=1e-5), "HD95 stays in mm"


def test_what_one_pair_does_not_tell(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"bundles": ["unetr_mod"], "labelled": [5], "folds": [0], "seeds": [1]}
    runs = read_study(make_study(tmp_path / "study", **plan)).runs
    table = difference_table(differences(runs, "baseline"), "baseline")
    line = line_of(table, "unetr", "5", "mod", "Dice (%)")
    assert [line[6], *line[8:]] == ["–", "–", "–"]
    assert line[7].startswith("[")
    row = written(table, tmp_path)[0]
    assert row["t_low"] == row["p"] == row["p_holm"] == ""
    scores = line_of(score_table(runs, "scores", ""), "unetr", "5", "mod")
    assert "±" not in "".join(scores), "one run has no standard deviation"


def test_levels_and_catching_up(results: StudyResults, tmp_path: Path) -> None:
    table = level_table(results.runs)
    assert line_of(table, "unetr", "5", "30", "mod")[4:6] == ["4 of 4", "25"]
    rows = written(table, tmp_path)
    assert {float(row["level"]) for row in rows} <= set(range(30, 95, 5))
    assert float(rows[0]["hours"]) == pytest.approx(50 / 3600, rel=1e-5)
    line = line_of(catch_up_table(results.runs, "baseline"), "unetr", "5", "baseline")
    assert line[3:] == ["4", "0", "1.00", "+0.00"], "these curves only rise"


def test_cost(results: StudyResults, tmp_path: Path) -> None:
    table = cost_table(results.runs, "baseline")
    assert line_of(table, "vit", "2", "baseline")[3:] == ["8", "2.000 ± 0.000", "1.00"]
    assert line_of(table, "vit", "2", "mod")[3:] == ["8", "3.000 ± 0.000", "1.50"]
    assert written(table, tmp_path)[1]["ratio"] == "1.5"


def test_progress(tmp_path: Path) -> None:
    study = make_study(tmp_path, skip=lambda run: run.arm == "scans" and run.seed == 1)
    table = progress_table(read_study(study))
    assert line_of(table, "unetr", "mod") == ["unetr", "mod", "8", "8"]
    assert line_of(table, "unetr", "scans") == ["unetr", "scans", "4", "8"]


def test_published_figures_of_the_studys_networks() -> None:
    (scores,) = published_tables(["unetr"], counts=False, probes=False)
    assert [line[1:3] for line in scores.cells] == [
        ["without MOD", "Table I, BraTS 2021"],
        ["MOD", "Table I, BraTS 2021"],
        ["without MOD", "Table II, MSD Task01"],
        ["MOD", "Table II, MSD Task01"],
    ]
    assert line_of(scores, "unetr", "MOD", "Table I, BraTS 2021")[6] == "92.01"
    assert line_of(scores, "unetr", "MOD", "Table I, BraTS 2021")[-1] == "3.57"
    names = [table.name for table in published_tables(["unetr", "vit"], counts=True, probes=True)]
    assert names == ["published", "published_labelled_cases", "published_probes"]
    assert published_tables(["resnet"], counts=True, probes=True) == []


def test_published_means_are_those_of_the_regions() -> None:
    """The printed means, but for the two of which the caveats tell."""
    tables = published_tables(
        ["vit", "unetr", "unetrpp", "swinunetr", "swinunetrv2", "segmamba"], True, True
    )
    odd = []
    for table in (tables[0], tables[2]):
        for row in table.rows:
            mean = sum(row[f"dice_{region}"] for region in ("tc", "wt", "et")) / 3
            if abs(mean - row["dice"]) > 0.11:
                odd.append((row["table"], row["network"], row["arm"]))
    assert len(tables[0].rows) == 24
    assert odd == [
        ("Table I, BraTS 2021", "unetr", "without MOD"),
        ("Table II, MSD Task01", "unetrpp", "MOD"),
    ]


def test_caveats_name_what_can_not_be_compared() -> None:
    text = " ".join(caveats())
    for word in ("not matched", "0.001", "best validation epoch", "no test set", "label 2"):
        assert word in text
