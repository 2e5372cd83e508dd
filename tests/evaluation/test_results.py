"""The files of an evaluation: what is read from them and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mod_components.errors import DataError
from mod_components.evaluation.compare import read_scores
from mod_components.evaluation.results import note_text, read_results, read_table
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
    for content in (b"\xff\xfe", b"[1]", b"case,region,x\na,a,?\n", b"case,region\na,a,b\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}( can't be read|: ).*(valuate|Give the file)"):
            read_results(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file. Give a folder that an eval"):
        read_results(tmp_path)


def test_a_table_that_a_spreadsheet_has_saved(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    text = "case,dice_tc,dice_wt\nMüller,0.5,\nb,0.25,1\n"
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    rows = read_table(table, "case")
    assert list(rows) == ["Müller", "b"]
    assert rows["b"] == {"dice_tc": 0.25, "dice_wt": 1.0}
    assert math.isnan(rows["Müller"]["dice_wt"])
    assert read_scores(table)["b"] == rows["b"]
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"table.csv can't be read \(UnicodeDecodeError.*in UTF-8"):
        read_table(table, "case")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,x,y\na,1,2\nb,0.", "the row of b has too few cells. Was the file cut short"),
        ("case,x,y\na,1,2\nb,1,2,3\n", "the row of b has too many cells"),
        ('case,x\na,"1', r"can't be read \(Error: unexpected end of data\)"),
        ("case,x\na,1\na,1\n", "a is there twice"),
        ("case,x\n,1\n", "a row without a case"),
        ("case,x\na,1.o\n", "x of a is '1.o', not a number"),
        ("", "no column 'case'"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=rf"table.csv.*{message}"):
        read_table(tmp_path / "table.csv", "case")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"can't be read \(IsADirectoryError"):
        read_table(tmp_path, "case")


def test_how_values_are_shown(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    row = {"case": "a", "volume_error_wt": -0.001, "hd95_wt": 2, "lesions_false_wt": 1}
    write_rows(tmp_path / "metrics_per_case.csv", [row])
    volume, distance, lesions = read_results(tmp_path).metrics
    shown = [volume.show(value) for value in (-0.001, 0.004, -0.05, 9.87654, -10, 123.45)]
    assert shown == ["0.00", "0.00", "-0.05", "9.88", "-10.0", "123.5"]
    assert [volume.show_mean(value) for value in (-0.001, 3.456)] == ["0.00", "3.46"]
    assert [volume.show_mean(value, 21.8) for value in (-4.684, 44)] == ["-4.7", "44.0"]
    assert [distance.show(value) for value in (-0.01, 2.345)] == ["0.0", "2.3"]
    assert lesions.show_mean(1.25) == "1.2"


def test_how_notes_are_shown() -> None:
    notes = (True, False, None, 1.23456789, 3, "0123456789abcdef 00aa")
    shown = [note_text(note) for note in notes]
    assert shown == ["yes", "no", "–", "1.23457", "3", "0123456789abcdef 00aa"]
