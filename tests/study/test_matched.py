"""What keeps runs from standing beside each other is found in their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mod_components.study import Run, read_plan
from mod_components.study.matched import unlike_settings, unmatched
from mod_components.study.results import Finished, read_study
from tests.study.made_up import ARMS, make_study


def runs_of(folder: Path, change: Any = None, **plan: Any) -> tuple[Finished, ...]:
    return read_study(make_study(folder, change, **plan)).runs


def test_runs_of_one_plan_are_alike(tmp_path: Path) -> None:
    """Seeds, folds and numbers of cases are what a plan varies."""

    def of_a_run(run: Run, content: dict[str, Any]) -> None:
        content["settings"] |= {"seed": run.seed, "fold": run.fold, "training_cases": run.labelled}
        content["settings"]["mod"] = {"tokenizer": {"alpha": 1.5, "warmup_epochs": run.seed}}

    runs = runs_of(tmp_path, of_a_run)
    assert list(unlike_settings(runs)) == []
    assert list(unmatched(runs, read_plan(tmp_path / "plan.json"))) == []


def test_a_default_that_changed_on_the_way_is_named(tmp_path: Path) -> None:
    def changed(run: Run, content: dict[str, Any]) -> None:
        if run.bundle == "vit_mod" and run.arm == "mod":
            momentum = 0.9 if run.seed == 2 else 0.99
            content["settings"]["mod"] = {"tokenizer": {"class_momentum": momentum}}
            content["settings"]["tap"] = "vit"

    assert list(unlike_settings(runs_of(tmp_path, changed))) == [
        ("vit, mod", ["mod#tokenizer#class_momentum"])
    ]


def test_a_record_that_notes_less_is_another_one(tmp_path: Path) -> None:
    def older(run: Run, content: dict[str, Any]) -> None:
        if run.seed == 2:
            content["settings"]["mod"] = {"teacher": {"momentum": 0.95}}

    runs = runs_of(tmp_path, older, bundles=["vit_mod"], arms={"baseline": {}, "mod": {}})
    assert dict(unlike_settings(runs)) == {
        "vit, baseline": ["mod#teacher#momentum"],
        "vit, mod": ["mod#teacher#momentum"],
    }


def test_other_numbers_of_updates_and_of_crops(tmp_path: Path) -> None:
    def more(run: Run, content: dict[str, Any]) -> None:
        if run.arm == "mod" and run.labelled == 5 and run.seed == 1:
            content["updates"] = 125
        if run.arm == "scans":
            content["settings"]["batch_size"] = 4
        if run.arm == "scans" and not run.labelled:
            content["settings"]["roi_size"] = [32, 64, 32]

    runs = runs_of(tmp_path, more, bundles=["vit_mod"])
    assert list(unmatched(runs, read_plan(tmp_path / "plan.json"))) == [
        "vit, 5 labelled, mod: 125 updates beside baseline's 100",
        "vit, 5 labelled, scans: 4 crops an update beside baseline's 2",
        "vit, all labelled, scans: 4 crops an update beside baseline's 2",
        "vit, all labelled, scans: 65536 voxels a crop beside baseline's 131072",
    ]


def test_another_device_and_precision(tmp_path: Path) -> None:
    def elsewhere(run: Run, content: dict[str, Any]) -> None:
        gpu = run.arm == "mod"
        of_old = run.arm == "scans"
        noted = {"device": "cuda" if gpu else "cpu", "amp": gpu, "amp_dtype": "bfloat16"}
        content["settings"] |= {} if of_old else noted

    runs = runs_of(tmp_path, elsewhere, bundles=["vit_mod"], labelled=[5])
    assert list(unmatched(runs, read_plan(tmp_path / "plan.json"))) == [
        "vit, 5 labelled, mod: cuda device beside baseline's cpu",
        "vit, 5 labelled, mod: bfloat16 precision beside baseline's float32",
    ]


def test_a_training_that_went_before(tmp_path: Path) -> None:
    arms = {**ARMS, "warm": {"use_mod": False, "start_from": "mod"}}
    runs = runs_of(tmp_path, bundles=["vit_mod"], arms=arms, labelled=[5])
    assert list(unmatched(runs, read_plan(tmp_path / "plan.json"))) == [
        "vit, 5 labelled, warm: the updates of mod, with which it begins, come on top"
    ]
