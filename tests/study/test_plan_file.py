from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mod_components.errors import DataError, SettingsError
from mod_components.study import read_plan
from tests.study.test_plan import write


def test_defaults(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    assert (plan.name, plan.folds, plan.validations) == ("small", (-1,), 5)
    assert plan.warmup_updates == plan.mod_warmup_updates == 5
    assert not plan.arms["mod"].unlabelled
    assert plan.arms["scans"].unlabelled
    assert plan.arms["scans"].settings == {}


def test_paths_are_relative_to_the_plan_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"unetr": {"title": "mine"}, "other": {}}')
    path = write(tmp_path, dataset_dir="data", table="rows.json")
    plan = read_plan(path)
    assert plan.dataset_dir == str(tmp_path / "data")
    assert plan.table == str(tmp_path / "rows.json")
    assert plan.rows == {"unetr": {"title": "mine"}}
    assert read_plan(path, "/given").dataset_dir == "/given"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown seed"),
        ({"updates": 0}, "updates must be a whole number from 1"),
        ({"labelled": []}, "labelled must be a list"),
        ({"labelled": [5, 5]}, "labelled names a number twice"),
        ({"labelled": [2.5]}, "labelled must be a whole number"),
        ({"folds": [-2]}, "folds must be a whole number from -1"),
        ({"arms": {}}, "arms must be"),
        ({"arms": {"mod": {"epochs": 3}}}, "can't set epochs"),
        ({"arms": {"mod": {"weights": "model.pt"}}}, "weights must be"),
        ({"arms": {"probe": {"probe": "linear"}}}, "a probe needs start_from"),
        ({"arms": {"a": {"start_from": "b"}, "b": {}}}, "must name an arm before it, got 'b'"),
        ({"arms": {"mod": {"probe": "soft"}}}, "probe must be one of"),
        ({"arms": {"mod": {"labelled": -1}}}, "labelled must be a whole number"),
        ({"arms": {"mod": {"unlabelled": "false"}}}, "unlabelled must be true or false"),
        ({"arms": {"a": {}, "mod": {"evaluate": "no"}}}, "evaluate must be true or false"),
        ({"arms": {"a": {}, "b": {"start_from": ["a"]}}}, "start_from must be an arm's name"),
        ({"arms": {"mod": {"evaluate": False}}}, "the first arm is what the others"),
        ({"arms": {"../mod": {}}}, "an arm must be a name without / and"),
        ({"name": ".."}, "name must be a name"),
        ({"dataset_dir": 5}, "dataset_dir must be a path"),
        ({"settings": {"seed": 3}}, "can't set seed"),
        ({"settings": {"skip_bad_cases": True}}, "all its cases must be sound"),
        ({"arms": {"a": {"train#trainer#max_epochs": 3}}}, "make the plan's updates"),
        ({"settings": {"train::dataloader::batch_size": 3}}, "can't set train#dataloader#batch"),
        ({"bundles": []}, "bundles must be"),
        ({"bundles": {"unetr_mod": 3}}, "bundles: unetr_mod must be an object"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_plan(write(tmp_path, **changes))


def test_what_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"arms": {"baseline": {}}}')
    with pytest.raises(SettingsError, match="lacks bundles, updates"):
        read_plan(path)


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_file_that_is_no_plan(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"plan\.json"):
        read_plan(path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table of backbones .*rows\.json can't be read"):
        read_plan(write(tmp_path, table="rows.json"))
