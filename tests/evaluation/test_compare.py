"""Paired comparison against enumeration, a plain bootstrap, and Holm's procedure by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mod_components.errors import DataError
from mod_components.evaluation.compare import Comparison, Difference, compare, read_scores
from mod_components.evaluation.scores import METRICS
from mod_components.handlers.tables import write_csv

REGIONS = ("tc", "wt", "et")
KEYS = [metric.key for metric in METRICS if metric.key != "volume_truth"]  # the same in all


def write(folder: Path, values: dict[str, np.ndarray], keys: list[str] = KEYS) -> Path:
    """An evaluation in which all metrics of a case have the same three values, by case."""
    columns = [f"{key}_{region}" for key in keys for region in REGIONS]
    rows = [
        {"case": case, **dict(zip(columns, np.tile(three, len(keys)).tolist(), strict=True))}
        for case, three in values.items()
    ]
    write_csv(folder / "metrics_per_case.csv", ["case", *columns], rows)
    return folder


def pair(tmp_path: Path, change: np.ndarray) -> Comparison:
    """A comparison of evaluations that differ by ``change`` (cases, 3)."""
    start = np.random.default_rng(2).integers(300, 600, change.shape) / 1000
    a = {f"case_{i}": row for i, row in enumerate(start)}
    b = {f"case_{i}": row for i, row in enumerate(start + change)}
    return compare(write(tmp_path / "a", a), write(tmp_path / "b", b))


def exact_signed_rank(change: np.ndarray) -> float:
    """Two-sided p by all 2^n signs of the ranks; no ties."""
    ranks = np.argsort(np.argsort(abs(change))) + 1
    centre = ranks.sum() / 2
    seen = abs(ranks[change > 0].sum() - centre)
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return float(np.mean([abs(s - centre) >= seen - 1e-9 for s in sums]))


def test_p_is_that_of_all_signs(tmp_path: Path) -> None:
    change = np.array([[1, -2, 4], [3, 5, -1], [-2, 6, 7], [5, 9, 2], [7, -1, 9], [9, 11, -3]])
    found = pair(tmp_path, change / 100)
    dices = found.differences[:4]
    assert [(d.metric, d.region, d.n) for d in dices] == [
        ("dice", region, 6) for region in ("TC", "WT", "ET", "mean")
    ]
    columns = [*change.T, change.mean(1)]
    assert len(set(abs(columns[3]))) == 6
    p = [exact_signed_rank(column) for column in columns]
    assert [d.p for d in dices] == pytest.approx(p)
    # Holm: the smallest of three times 3, the next times 2, the last as it is, never falling.
    first, second, third = np.argsort(p[:3], kind="stable")
    holm = {first: min(1, 3 * p[first])}
    holm[second] = max(holm[first], min(1, 2 * p[second]))
    holm[third] = max(holm[second], p[third])
    assert [d.p_holm for d in dices[:3]] == pytest.approx([holm[i] for i in range(3)])
    assert math.isnan(dices[3].p_holm)


@pytest.mark.parametrize("equal", [0, 1, 9, 40])
def test_cases_in_which_nothing_differs_change_no_p(tmp_path: Path, equal: int) -> None:
    """Five that differ alike: no test can say more than 2 / 2^5 of them."""
    change = np.zeros((5 + equal, 3))
    change[:5] = np.arange(1, 6)[:, None] / 100
    found = pair(tmp_path, change)
    assert [d.p for d in found.differences[:3]] == pytest.approx([2 / 2**5] * 3)


def test_differences_are_b_less_a_with_a_paired_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    change = np.round(rng.normal([0.02, -0.01, 0.0], 0.03, (40, 3)), 4)
    found = pair(tmp_path, change)
    assert {d.metric for d in found.differences} == {"dice", "hd95", "nsd", "lesion_dice"}
    columns = [*change.T, change.mean(1)]
    for difference, column in zip(found.differences[:4], columns, strict=True):
        assert difference.difference == pytest.approx(column.mean(), abs=1e-6)
        assert difference.mean_b - difference.mean_a == pytest.approx(column.mean(), abs=1e-6)
        means = [rng.choice(column, column.size).mean() for _ in range(20_000)]
        ends = difference.ci_low, difference.ci_high
        spread = column.std() / column.size**0.5  # of the pairs, not of either evaluation
        assert ends == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.06 * spread)
    assert found.differences[0].p < 0.05 < found.differences[2].p


def test_equal_evaluations(tmp_path: Path) -> None:
    found = pair(tmp_path, np.zeros((5, 3)))
    for difference in found.differences:
        assert difference.p == 1
        assert difference.ci_low == difference.difference == difference.ci_high == 0
    assert found.differences[0].p_holm == 1


def test_ties_survive_the_rounding_of_files(tmp_path: Path) -> None:
    # 0.1, 0.1, 0.1, 0.2 as floats are not equal once subtracted; the ranks are 2, 2, 2, 4. With
    # one sign the other way, 4 of 16 sign patterns are as extreme on either side: p = 0.5.
    a = {f"c{i}": np.full(3, v) for i, v in enumerate((0.3, 0.7, 0.41, 0.2))}
    b = {f"c{i}": np.full(3, v) for i, v in enumerate((0.4, 0.8, 0.31, 0.4))}
    found = compare(write(tmp_path / "a", a), write(tmp_path / "b", b))
    ranks = np.array([2, 2, 2, 4])
    sums = [np.dot(s, ranks) for s in itertools.product((0, 1), repeat=4)]
    expected = np.mean([abs(s - 5) >= 3 for s in sums])
    assert expected == 0.5
    assert found.differences[0].p == pytest.approx(expected)


def test_cases_are_joined(tmp_path: Path) -> None:
    values = {name: np.full(3, 0.1 * i) for i, name in enumerate("abcde")}
    a = write(tmp_path / "one", {name: values[name] for name in "dcba"})
    b = write(tmp_path / "two", {name: values[name] for name in "bcde"})
    found = compare(a / "metrics_per_case.csv", str(b))
    assert (found.cases, found.only_a, found.only_b) == (("b", "c", "d"), ("a",), ("e",))
    assert all(d.n == 3 and d.difference == 0 for d in found.differences)
    text = "\n".join(found.table())
    assert "3 cases in both, 1 only in A, 1 only in B" in text
    assert str(a) in text
    assert str(b) in text


def with_volumes(folder: Path, volumes: dict[str, tuple[float, float, float]]) -> Path:
    """An evaluation of a Dice of 0.5 with these true volumes."""
    columns = [f"{key}_{region}" for key in ("dice", "volume_truth") for region in REGIONS]
    rows = [
        {"case": case, **dict(zip(columns, (*3 * [0.5], *three), strict=True))}
        for case, three in volumes.items()
    ]
    write_csv(folder / "metrics_per_case.csv", ["case", *columns], rows)
    return folder


def test_other_truths_are_not_compared(tmp_path: Path) -> None:
    volumes = {f"c{i}": (10.0 + i, 20.0 + i, 0.0) for i in range(6)}
    a = with_volumes(tmp_path / "a", volumes)
    rounded = {case: tuple(1.00002 * v for v in three) for case, three in volumes.items()}
    assert len(compare(a, with_volumes(tmp_path / "b", rounded)).cases) == 6  # type: ignore[arg-type]
    other = {**volumes, "c1": (11.0, 21.0, 0.008), "c4": (13.9, 24.0, 0.0), "new": (1, 2, 3)}
    with pytest.raises(
        DataError,
        match=r"a.*c.metrics_per_case.csv do not have the same truth: .* 2 of 6 cases differ "
        r"\(c1: ET 0 and 0.008 mL; c4: TC 14 and 13.9 mL\). Evaluate both again .* legacy_et",
    ):
        compare(a, with_volumes(tmp_path / "c", other))
    # older evaluations do not say what they were judged by, and a gap says nothing
    values = {case: np.full(3, 0.5) for case in volumes}
    assert len(compare(a, write(tmp_path / "old", values, ["dice"])).cases) == 6
    gap = dict.fromkeys(volumes, (math.nan,) * 3)
    assert len(compare(a, with_volumes(tmp_path / "gap", gap)).cases) == 6


def test_holm_counts_only_what_was_tested(tmp_path: Path) -> None:
    change = np.array([[i + 1, (-1) ** i * (i + 1), 0] for i in range(6)]) / 100
    start = {f"c{i}": np.array([0.3, 0.5, np.nan]) for i in range(6)}
    moved = {case: row + change[i] for i, (case, row) in enumerate(start.items())}
    found = compare(write(tmp_path / "a", start), write(tmp_path / "b", moved))
    tc, wt, et, mean = found.differences[:4]
    assert tc.p == pytest.approx(2 / 64)  # all six one way
    assert [tc.p_holm, wt.p_holm] == pytest.approx([2 * tc.p, max(2 * tc.p, wt.p)])
    assert all(math.isnan(p) for p in (et.p, et.p_holm, mean.p))
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["differences"][2]["p_holm"] is None
    assert "nan" not in found.table()[6].rsplit("]", 1)[1]


def test_a_small_p_is_not_shown_as_nothing(tmp_path: Path) -> None:
    found = pair(tmp_path, np.full((40, 3), 0.01) * np.arange(1, 41)[:, None])
    assert found.differences[0].p < 1e-6
    lines = found.table()
    assert lines[4].endswith("<0.0001 <0.0001")
    assert not any(" 0.0000" in line.rsplit("]", 1)[1] for line in lines[4:])


def test_it_is_ready_for_json_and_for_a_table(tmp_path: Path) -> None:
    found = pair(tmp_path, np.array([[0.01, 0.02, -0.03], [0.02, 0.05, 0.01]]))
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["differences"] == found.as_rows()
    assert content["cases"] == ["case_0", "case_1"]
    assert len(found.as_rows()) == 16
    assert found.as_rows()[3]["p_holm"] is None
    assert set(found.as_rows()[0]) == set(Difference.__dataclass_fields__)
    lines = found.table()
    assert len(lines) == 3 + 1 + 16
    assert lines[4].split()[:3] == ["Dice", "TC", "2"]
    assert "+0.0150" in lines[4]


def test_older_evaluations_have_fewer_metrics(tmp_path: Path) -> None:
    values = {"a": np.full(3, 0.5), "b": np.full(3, 0.25)}
    old = write(tmp_path / "old", values, ["dice", "hd95"])
    found = compare(old, write(tmp_path / "new", values))
    assert [d.metric for d in found.differences] == ["dice"] * 4 + ["hd95"] * 4
    other = write(tmp_path / "other", values, ["volume_pred"])
    with pytest.raises(DataError, match=r"old.*other.*share no metric"):
        compare(old, other)


def test_an_empty_cell_is_left_out(tmp_path: Path) -> None:
    values = {name: np.full(3, 0.1 * i) for i, name in enumerate("abc")}
    a = write(tmp_path / "one", values)
    gap = {**values, "b": np.array([0.2, 0.2, np.nan])}
    found = compare(a, write(tmp_path / "two", gap))
    assert [d.n for d in found.differences[:4]] == [3, 3, 2, 2]


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    a = write(tmp_path / "one", {"a": np.zeros(3)})
    b = write(tmp_path / "two", {"b": np.zeros(3), "c": np.zeros(3)})
    with pytest.raises(DataError, match=r"no case is in both .*one.*\(1 cases.*two.*\(2 cases"):
        compare(a, b)
    with pytest.raises(DataError, match=r"missing: no such file. Give a folder that"):
        compare(a, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.metrics_per_case.csv: no such file"):
        compare(tmp_path / "empty", b)
    table = tmp_path / "odd.csv"
    for text, message in (
        ("case,dice_tc\n", "no case in it"),
        ("name,dice_tc\nx,1\n", "no column 'case'"),
        ("case;dice_tc\nx;1\n", "no column 'case'.*commas"),
        ("case,dice_tc\nx,1\nx,1\n", "x is there twice"),
        ("case,dice_tc\nx,good\n", "dice_tc of x is 'good', not a number"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            read_scores(table)
