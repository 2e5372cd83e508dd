"""The files of an evaluation: what is read from them and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mod_components.errors import DataError
from mod_components.evaluation.results import read_results
from tests.evaluation.cases import write_evaluation, write_rows


def test_what_is_read(tmp_path: Path) -> None:
    dices = {"good": (0.9, 0.8, 0.7), "bad": (0.1, 0.2, 0.6), "worse": (0.1, 0.2, 0.3)}
    results = read_results(write_evaluation(tmp_path, dices, {"data": "x"}))
    assert [case.name for case in results.cases] == ["worse", "bad", "good"]
    assert results.cases[1].mean_dice == pytest.approx(0.3)
    assert results.cases[2].values["dice"] == {"TC": 0.9, "WT": 0.8, "ET": 0.7}
    assert math.isnan(results.cases[0].values["sensitivity"]["ET"])
    assert [metric.key for metric in results.metrics] == ["dice", "hd95", "sensitivity"]
    assert results.summary["mean"]["dice_ci_high"] == 0.7
    assert math.isnan(results.summary["ET"]["sensitivity_mean"])
    assert results.notes == {"data": "x"}


def test_metrics_that_nobody_has_heard_of(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    rows = [{"case": "a", "our_score_wt": "0.25", "seconds": "3", "lesions_found_et": "2"}]
    write_rows(tmp_path / "metrics_per_case.csv", rows)
    results = read_results(tmp_path)
    ours, lesions = results.metrics
    assert (ours.title, ours.regions, ours.show(0.25)) == ("Our score", ("WT",), "0.250")
    assert (lesions.show(2.0), lesions.show_mean(2.0), lesions.show(math.nan)) == ("2", "2.0", "–")
    assert math.isnan(results.cases[0].mean_dice)


def test_cases_without_a_dice_come_last(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    rows = [
        {"case": "a", "dice_wt": ""},
        {"case": "c", "dice_wt": "1"},
        {"case": "b", "dice_wt": 1},
    ]
    write_rows(tmp_path / "metrics_per_case.csv", rows)
    assert [case.name for case in read_results(tmp_path).cases] == ["b", "c", "a"]


@pytest.mark.parametrize("name", ["metrics_per_case.csv", "metrics_summary.csv", "summary.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    for content in (b"\xff\xfe", b"[1]", b"case,dice_tc\na,?\n", b"case,region\na,a,b\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} (can't be read .* evaluate again|has no)"):
            read_results(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"has no {name}: give the output_dir"):
        read_results(tmp_path)
