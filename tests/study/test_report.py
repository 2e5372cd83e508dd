"""A report is complete, the same each time, and says no more than has run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mod_components.errors import DataError
from mod_components.study import Run
from mod_components.study.report import write_report
from tests.study.made_up import make_study


def arms_in(path: Path, column: int = 1) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split(",")[column] for line in lines[1:]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which one run is not finished."""
    last = Run("vit_mod", "scans", 0, 1, 2)
    return make_study(tmp_path_factory.mktemp("report") / "study", skip=lambda run: run == last)


@pytest.fixture(scope="module")
def paths(study: Path) -> list[Path]:
    return write_report(study)


@pytest.fixture(scope="module")
def text(paths: list[Path]) -> str:
    return paths[0].read_text(encoding="utf-8")


def small(folder: Path, **changes: Any) -> Path:
    plan = {"bundles": ["unetr_mod"], "labelled": [5], "folds": [0], "seeds": [1]}
    return make_study(folder, **{**plan, **changes})


def test_the_files(study: Path, paths: list[Path]) -> None:
    assert {path.parent for path in paths} == {study / "report"}
    assert [path.name for path in paths] == [
        "report.md",
        "progress.csv",
        *("scores.csv", "regions_n5.png", "regions_all.png", "paired.csv", "paired.png"),
        *("labelled_cases.csv", "labelled_cases.png"),
        *("convergence_n5.png", "convergence_all.png", "levels.csv", "catch_up.csv", "cost.csv"),
        *("published.csv", "published_labelled_cases.csv"),
    ]
    assert {path.name for path in (study / "report").iterdir()} == {path.name for path in paths}


def test_what_ran(text: str) -> None:
    assert text.startswith("# made up\n\nDoes MOD help with few labelled cases?\n")
    for line in (
        "- finished runs: 47 of 48 planned",
        "- data set: Task00_MadeUp",
        "- updates of a run: 100 planned, in whole epochs: 100",
        "- batch size: 2",
        "- crop (voxels): 64 × 64 × 32",
        "- labelled cases: 5, all",
        "- held out: fold 0, fold 1",
        "- seeds: 1, 2",
        "- versions: torch 2.4.0",
        '- baseline: `{"use_mod": false}`',
        "- mod: as the bundle is",
        "- scans: weights: `model_ema.pt`",
        "| vit | scans | 7 | 8 |",
    ):
        assert f"\n{line}\n" in text


def test_all_that_is_referred_to_is_there_and_the_reverse(text: str, paths: list[Path]) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert set(targets) == {path.name for path in paths[1:]}


def test_nothing_tells_where_the_study_lies(study: Path, paths: list[Path]) -> None:
    for path in paths:
        content = path.read_bytes()
        assert str(study).encode() not in content
        assert b"/tmp" not in content


def test_how_to_do_it_again(text: str) -> None:
    commands = text.partition("## To do it again")[2]
    assert (
        "python -m mod_components study plan.json --folder again "
        "--dataset_dir FOLDER_OF_THE_DATA_SET\n"
        "python -m mod_components report again\n"
    ) in commands


def test_a_study_without_its_data_set_asks_for_it(tmp_path: Path) -> None:
    def of_the_sample(_run: Run, content: dict[str, Any]) -> None:
        content["settings"]["dataset_dir"] = "embedded sample"

    shared = write_report(small(tmp_path / "shared", dataset_dir=""))[0]
    assert "--folder again --dataset_dir FOLDER" in shared.read_text(encoding="utf-8")
    sample = write_report(small(tmp_path / "sample", change=of_the_sample, dataset_dir=""))[0]
    assert "--folder again\n" in sample.read_text(encoding="utf-8")


def test_a_report_makes_no_sample_for_pictures_that_it_can_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sample() -> Path:
        raise DataError("the embedded sample can't be made")

    monkeypatch.setattr("mod_components.study.report.make_sample", no_sample)
    study = small(tmp_path / "shared", dataset_dir="")
    assert "No pictures" in write_report(study)[0].read_text(encoding="utf-8")


def test_networks_that_the_paper_does_not_have(tmp_path: Path) -> None:
    text = write_report(small(tmp_path, bundles=["segresnet_mod"]))[0].read_text(encoding="utf-8")
    assert "## What the paper reports\n\nNothing of the networks of this study.\n" in text


def test_what_is_not_matched_is_told(tmp_path: Path) -> None:
    def more(run: Run, content: dict[str, Any]) -> None:
        if run.arm == "mod":
            content["updates"] = 120
            content["settings"]["mod"] = {"tokenizer": {"class_momentum": 0.8 + run.seed / 10}}

    text = write_report(small(tmp_path, change=more, seeds=[1, 2]))[0].read_text(encoding="utf-8")
    told = "**Not at equal work:** unetr, 5 labelled, mod: 120 updates beside baseline's 100."
    assert f"\n{told}\n" in text
    assert "unlike settings:** unetr, mod (mod#tokenizer#class_momentum)." in text


def test_what_the_paper_reports_comes_with_what_is_wrong_with_it(text: str) -> None:
    published = text.partition("## What the paper reports")[2]
    assert published.index("Not to be compared") < published.index("| unetr | MOD |")
    assert "not matched" in published


def test_the_same_records_give_the_same_bytes(
    study: Path, paths: list[Path], tmp_path: Path
) -> None:
    again = write_report(study, str(tmp_path / "elsewhere" / "again"))
    assert [path.name for path in again] == [path.name for path in paths]
    for path, other in zip(paths, again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


def test_a_study_without_a_finished_run(tmp_path: Path) -> None:
    paths = write_report(small(tmp_path, skip=lambda run: True))
    text = paths[0].read_text(encoding="utf-8")
    assert "- finished runs: 0 of 3 planned" in text
    assert "- batch size: not known yet" in text
    assert "Accuracy" not in text
    assert [path.name for path in paths] == ["report.md", "progress.csv", "published.csv"]


def test_a_study_without_its_baseline_compares_nothing(tmp_path: Path) -> None:
    paths = write_report(small(tmp_path, skip=lambda run: run.arm == "baseline"))
    assert "paired.csv" not in {path.name for path in paths}
    assert "scores.csv" in {path.name for path in paths}


def test_probes_stand_apart_by_their_kind(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"baseline": {}, "mod": {}}
    for kind in ("linear", "strict"):
        for arm in ("baseline", "mod"):
            arms[f"{kind} of {arm}"] = {"probe": kind, "start_from": arm}

    def probe(run: Run, content: dict[str, Any]) -> None:
        content["probe"] = arms[run.arm].get("probe", "")

    paths = write_report(small(tmp_path, change=probe, arms=arms))
    text, files = paths[0].read_text(encoding="utf-8"), {path.name: path for path in paths}
    assert "\n- linear of mod: linear probe of mod\n" in text
    assert arms_in(files["scores.csv"]) == ["baseline", "mod"]
    assert "published_probes.csv" in files
    for kind in ("linear", "strict"):
        own = [f"{kind} of baseline", f"{kind} of mod"]
        assert arms_in(files[f"probes_{kind}.csv"]) == own
        assert set(arms_in(files[f"paired_probes_{kind}.csv"], 2)) == {own[1]}
        assert f"### Paired differences from {own[0]}" in text


def test_an_arm_that_only_prepares_another(tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        "baseline": {},
        "before": {"evaluate": False, "labelled": 0, "unlabelled": True},
        "after": {"start_from": "before"},
    }

    def nothing(run: Run, content: dict[str, Any]) -> None:
        if run.arm == "before":
            content.update(scores={}, curve=[])

    paths = write_report(small(tmp_path, change=nothing, arms=arms))
    text, files = paths[0].read_text(encoding="utf-8"), {path.name: path for path in paths}
    for line in (
        "- before: with unlabelled scans; labelled cases: all; not evaluated",
        "- after: starts from the final weights of before",
    ):
        assert f"\n{line}\n" in text
    assert "\nafter: updates and hours of the arm that they start from do not count" in text
    assert arms_in(files["scores.csv"]) == ["baseline", "after"]
    assert set(arms_in(files["cost.csv"], 2)) == {"baseline", "before", "after"}
    assert "labelled_cases.csv" not in files, "nothing was evaluated with all cases"


def test_without_probes_the_report_says_so(text: str) -> None:
    assert "No finished run of this study is a probe" in text


def test_runs_of_other_settings_are_told(tmp_path: Path) -> None:
    def other(run: Run, content: dict[str, Any]) -> None:
        content["digest"] = "other" if run.arm == "mod" else content["digest"]

    text = write_report(small(tmp_path, change=other))[0].read_text(encoding="utf-8")
    assert "**These runs were made by other settings" in text
    assert "runs/unetr_mod/mod/n5/fold0/seed1." in text


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    study = small(tmp_path)
    path = study / Run("unetr_mod", "mod", 5, 0, 1).folder / "finished.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"mod/n5/fold0/seed1/finished\.json is damaged"):
        write_report(study)
