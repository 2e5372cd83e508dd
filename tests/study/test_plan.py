from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from mod_components.study import Run, read_plan

CONTENT: dict[str, Any] = {
    "bundles": {"unetr_mod": {"hidden_size": 48}, "vit_mod": {}},
    "arms": {"baseline": {"use_mod": False}, "mod": {}, "scans": {"unlabelled": True}},
    "updates": 100,
    "labelled": [5, 0],
    "seeds": [0, 1],
    "settings": {"batch_size": 2},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.json"
    path.write_text(json.dumps({**CONTENT, **changes}))
    return path


def test_the_runs_are_all_combinations_with_whole_pairs_first(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    runs = list(plan.runs())
    assert len(runs) == len(set(runs)) == 2 * (3 + 2) * 2
    assert not [run for run in runs if run.arm == "scans" and not run.labelled]  # none is left
    assert runs[:3] == [Run("unetr_mod", arm, 5, -1, 0) for arm in ("baseline", "mod", "scans")]
    assert {run.seed for run in runs[: len(runs) // 2]} == {0}
    assert len({run.folder for run in runs}) == len(runs)


def test_scans_that_another_arm_begins_with_are_run_where_all_cases_are_labelled(
    tmp_path: Path,
) -> None:
    arms = {"scans": {"unlabelled": True}, "after": {"start_from": "scans"}}
    plan = read_plan(write(tmp_path, arms=arms, labelled=[0], seeds=[0]))
    assert [run.arm for run in plan.runs()] == ["scans", "after"] * 2
    own = {"baseline": {}, "scans": {"unlabelled": True, "labelled": 0}}
    plan = read_plan(write(tmp_path, arms=own, labelled=[0], seeds=[0]))
    assert [run.arm for run in plan.runs()] == ["baseline", "scans"] * 2


def test_the_folder_of_a_run_tells_what_it_is() -> None:
    run = Run("unetr_mod", "mod", 5, -1, 3)
    assert run.folder.as_posix() == "runs/unetr_mod/mod/n5/own_split/seed3"
    assert Run("unetr_mod", "mod", 0, 2, 3).folder.as_posix().endswith("mod/all/fold2/seed3")


def test_an_arm_has_the_last_word_on_a_setting(tmp_path: Path) -> None:
    arms = {"baseline": {"batch_size": 4, "use_mod": False}}
    plan = read_plan(write(tmp_path, arms=arms))
    settings = plan.settings_of(Run("unetr_mod", "baseline", 5, -1, 0))
    assert settings == {"hidden_size": 48, "batch_size": 4, "use_mod": False}


def test_a_run_keeps_its_digest_when_others_are_added_and_loses_it_when_it_changes(
    tmp_path: Path,
) -> None:
    run = Run("unetr_mod", "mod", 5, -1, 0)
    digest = read_plan(write(tmp_path)).digest(run)
    more = {**CONTENT["arms"], "tokenizer": {"use_predictor": False}}
    assert read_plan(write(tmp_path, arms=more, seeds=[0, 1, 2])).digest(run) == digest
    moved = read_plan(write(tmp_path, dataset_dir="a/data"), "/elsewhere/data").digest(run)
    assert moved == read_plan(write(tmp_path, dataset_dir="b/data")).digest(run)
    for changes in (
        {"updates": 101},
        {"settings": {"batch_size": 3}},
        {"mod_warmup_updates": 7},
        {"arms": {"mod": {"views": "one"}}},
        {"arms": {"mod": {"weights": "model_ema.pt"}}},
        {"arms": {"baseline": {}, "mod": {"evaluate": False}}},
        {"dataset_dir": "other"},
    ):
        assert read_plan(write(tmp_path, **changes)).digest(run) != digest, changes


def test_whoever_gets_the_settings_cannot_change_the_plan(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, arms={"mod": {"mod#average": {"views": "@mod#views"}}}))
    run = Run("unetr_mod", "mod", 5, -1, 0)
    digest = plan.digest(run)
    ConfigParser(plan.settings_of(run)).parse()
    assert plan.settings_of(run)["mod#average"] == {"views": "@mod#views"}
    assert plan.digest(run) == digest


def test_an_arm_with_its_own_number_of_cases_runs_once_and_others_begin_with_it(
    tmp_path: Path,
) -> None:
    arms = {
        "baseline": {},
        "without_labels": {"labelled": 0, "evaluate": False},
        "after": {"start_from": "without_labels"},
    }
    plan = read_plan(write(tmp_path, arms=arms, seeds=[0], labelled=[5, 15]))
    own = [run for run in plan.runs() if run.bundle == "unetr_mod"]
    runs = [run for run in own if run.arm != "baseline"]
    first = Run("unetr_mod", "without_labels", 0, -1, 0)
    assert runs == [first, *(Run("unetr_mod", "after", number, -1, 0) for number in (5, 15))]
    assert plan.source(first) is None
    assert [plan.source(run) for run in runs[1:]] == [first, first]


def test_a_run_changes_with_the_one_that_it_begins_with(tmp_path: Path) -> None:
    run = Run("unetr_mod", "after", 5, -1, 0)
    digests = set()
    for ratio in (0.5, 0.6):
        arms = {"first": {"mask_ratio": ratio}, "after": {"start_from": "first"}}
        digests.add(read_plan(write(tmp_path, arms=arms)).digest(run))
    assert len(digests) == 2


def test_a_run_changes_with_its_row_of_the_plans_table(tmp_path: Path) -> None:
    run, digests = Run("unetr_mod", "mod", 5, -1, 0), set()
    for title, other in (("mine", 1), ("mine", 2), ("another", 2)):
        rows = {"unetr": {"title": title}, "segresnet": {"title": other}}
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        digests.add(read_plan(write(tmp_path, table="rows.json")).digest(run))
    assert len(digests) == 2, "other rows do not count"
