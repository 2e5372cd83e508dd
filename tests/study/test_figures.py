"""What figures draw is what the runs have; how they look is the same each time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mod_components.study.figures import (
    _style,
    band,
    convergence,
    labelled_cases,
    paired,
    regions,
    save_figure,
)
from mod_components.study.results import Finished, StudyResults, read_study
from mod_components.study.statistics import Difference, differences
from tests.study.made_up import ARMS, GAIN, make_study

NAMES = list(ARMS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read_study(make_study(tmp_path_factory.mktemp("figures") / "study"))


def of(results: StudyResults, bundle: str, arm: str, labelled: int) -> list[Finished]:
    wanted = (bundle, arm, labelled)
    return [f for f in results.runs if (f.run.bundle, f.run.arm, f.run.labelled) == wanted]


def test_a_band_is_where_all_curves_are() -> None:
    x, mean, low, high = band([[(0, 0), (10, 10), (20, 20)], [(5, 1), (15, 3)], []])
    assert x.tolist() == [5, 10, 15]
    assert low.tolist() == [1, 2, 3]
    assert high.tolist() == [5, 10, 15]
    assert mean.tolist() == [3, 6, 9]
    assert all(part.size == 0 for part in band([[]]))
    apart = band([[(0, 9), (10, 1)], [(12, 2)]])
    assert [part.tolist() for part in apart] == [[11], [1.5], [1], [2]], "nothing in common"


def test_convergence_by_update_and_by_hour(results: StudyResults) -> None:
    runs = [found for found in results.runs if found.run.labelled == 5]
    figure = convergence(runs, NAMES)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["unetr", "unetr", "vit", "vit"]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["updates", "hours of training"]
    assert figure.axes[0].get_ylabel() == "mean Dice (%)"
    own = of(results, "unetr_mod", "mod", 5)
    for axes, first in ((figure.axes[0], 25), (figure.axes[1], 75 / 3600)):
        line = axes.lines[NAMES.index("mod")]
        assert line.get_label() == "mod"
        assert np.asarray(line.get_xdata())[0] == pytest.approx(first)
        last = np.mean([100 * run.curve[-1].dice for run in own])
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(last)
        assert len(axes.collections) == 3, "a band for each arm"


def test_by_hour_slow_runs_count_to_their_end(results: StudyResults) -> None:
    """A run that took twice as long is no reason to leave the second half of the others out."""
    own = of(results, "unetr_mod", "baseline", 5)
    slow = dataclasses.replace(
        own[0], curve=tuple(dataclasses.replace(p, seconds=3 * p.seconds) for p in own[0].curve)
    )
    line = convergence([slow, *own[1:]], NAMES).axes[1].lines[0]
    hours = [
        (3 * p.seconds + sum(len(own[1:]) * [p.seconds])) / 3600 / len(own) for p in own[0].curve
    ]
    assert np.asarray(line.get_xdata()) == pytest.approx(hours)
    last = np.mean([100 * run.curve[-1].dice for run in own])
    assert np.asarray(line.get_ydata())[-1] == pytest.approx(last)


def test_an_arm_keeps_its_colour_and_no_two_share_one(results: StudyResults) -> None:
    few = [found for found in results.runs if found.run.arm != "mod"]
    colours = {
        line.get_label(): line.get_color()
        for runs in (results.runs, few)
        for line in convergence(runs, NAMES).axes[0].lines
    }
    again = {line.get_label(): line.get_color() for line in convergence(few, NAMES).axes[2].lines}
    assert len(set(colours.values())) == 3
    assert colours["baseline"] == "#000000"
    assert again["scans"] == colours["scans"]


def test_more_arms_than_colours_still_differ() -> None:
    styles = [tuple(_style(place).values()) for place in range(32)]
    assert len(set(styles)) == 32


def test_dice_by_number_of_labelled_cases(results: StudyResults) -> None:
    figure = labelled_cases(results.runs, NAMES)
    assert [axes.get_title() for axes in figure.axes] == ["unetr", "vit"]
    axes = figure.axes[1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "12"]
    line = axes.containers[NAMES.index("scans")].lines[0]
    expected = [
        np.mean([100 * run.mean("dice") for run in of(results, "vit_mod", "scans", count)])
        for count in (5, 0)
    ]
    assert line.get_xdata().tolist() == pytest.approx([5, 12], rel=0.03)
    apart = [part.lines[0].get_xdata()[0] for part in axes.containers]
    assert apart == sorted(set(apart)), "whiskers stand side by side"
    assert line.get_ydata().tolist() == pytest.approx(expected)


def test_the_legend_fits_its_figure(results: StudyResults) -> None:
    names = ["baseline", "MOD", "tokenizer", "predictor", "MOD, with scans"]
    runs = [
        dataclasses.replace(run, run=dataclasses.replace(run.run, arm=names[index % 5]))
        for index, run in enumerate(run for run in results.runs if run.run.bundle == "vit_mod")
    ]
    figure = labelled_cases(runs, names)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_bars_of_regions_start_at_zero(results: StudyResults) -> None:
    every = [run for run in results.runs if not run.run.labelled]
    axes = regions(every, NAMES).axes[0]
    assert axes.get_ylim() == (0, 100)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["TC", "WT", "ET", "mean"]
    assert axes.get_title() == "unetr, labelled: all"
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    heights = [bar.get_height() for bar in bars[1].patches]
    own = of(results, "unetr_mod", "mod", 0)
    for height, key in zip(heights, ("dice_tc", "dice_wt", "dice_et", "dice"), strict=True):
        assert height == pytest.approx(np.mean([100 * run.mean(key) for run in own]))


def test_paired_differences_have_a_line_each_and_a_zero(results: StudyResults) -> None:
    found = differences(results.runs, "baseline")
    dice, hd95 = paired(found, NAMES).axes
    names = [tick.get_text() for tick in dice.get_yticklabels()]
    assert names[:3] == ["unetr, 5: mod", "unetr, 5: scans", "unetr, all: mod"]
    assert len(names) == 8
    assert dice.get_ylim() == (7.5, -0.5), "the first line stands on top"
    first = found[0]
    student, both, point, zero = dice.lines[0], dice.lines[1], dice.lines[2], dice.lines[-1]
    assert list(student.get_xdata()) == pytest.approx([100 * first.t_low, 100 * first.t_high])
    assert list(both.get_xdata()) == pytest.approx([100 * first.both_low, 100 * first.both_high])
    assert list(point.get_xdata()) == pytest.approx([100 * first.mean])
    assert list(zero.get_xdata()) == [0, 0]
    assert dice.get_xlabel() == "arm − baseline (percentage points)"
    assert hd95.get_xlabel() == "arm − baseline (mm)"


def test_wide_t_intervals_of_two_pairs_do_not_set_the_scale() -> None:
    def line(metric: str) -> Difference:
        return Difference(
            *("unetr_mod", 5, "mod", metric, 2, 2, 4),
            *(0.01, -0.9, 0.92, 0.4, 0.4, 0.005, 0.02),
        )

    dice, hd95 = paired([line("dice"), line("hd95")], NAMES).axes
    assert dice.get_xlim() == pytest.approx((-2.2, 2.2))
    assert hd95.get_xlim() == pytest.approx((-0.022, 0.022))


def test_an_equal_figure_has_equal_bytes(results: StudyResults, tmp_path: Path) -> None:
    pictures = [
        save_figure(regions(results.runs, NAMES), tmp_path / f"{name}.png").read_bytes()
        for name in "ab"
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")
    assert b"Software" not in pictures[0]
    assert set(GAIN) == set(NAMES)
