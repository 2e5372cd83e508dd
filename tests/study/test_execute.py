"""A study of tiny runs on the sample, from the plan to finished runs."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from mod_components.data import make_sample, select
from mod_components.errors import DataError, SettingsError, TrainingError
from mod_components.release import backbones
from mod_components.study import Run, Study, open_study
from mod_components.study.data import run_datalist
from mod_components.study.execute import _claimed, _job
from mod_components.study.record import training_cases
from mod_components.study.run import prediction
from tests.backbones import small_settings

PLAN: dict[str, Any] = {
    "name": "tiny",
    # a nested one, too: evaluation must build the network that was trained
    "bundles": {"unetr_mod": {**small_settings("unetr"), "network_def#res_block": False}},
    "arms": {"baseline": {"use_mod": False}, "weightless": {"mod_weight": 0}},
    "settings": {
        **{"roi_size": [64, 64, 64], "batch_size": 1, "num_workers": 0, "overlap": 0.1},
        **{"cache_rate": 1.0, "device": "cpu"},
    },
    "labelled": [2],
    "seeds": [3],
    "updates": 3,
    "warmup_updates": 1,
    "validations": 2,
}
BASELINE = Run("unetr_mod", "baseline", 2, -1, 3)
WEIGHTLESS = Run("unetr_mod", "weightless", 2, -1, 3)

Open = Callable[..., Study]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=4)


@pytest.fixture(scope="module")
def studies(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens a plan as PLAN with changes."""
    folder = tmp_path_factory.mktemp("study")

    def opened(**changes: Any) -> Study:
        path = folder / "plan.json"
        path.write_text(json.dumps({**PLAN, "dataset_dir": str(data), **changes}))
        return open_study(path, folder / changes.get("name", "tiny"))

    return opened


@pytest.fixture(scope="module")
def finished(studies: Open) -> Study:
    """The study when everything in it has run."""
    study = studies()
    assert study.pending() == [BASELINE, WEIGHTLESS]
    assert len(study.carry_out(jobs=2)) == 2
    return study


def record(study: Study, run: Run) -> dict[str, Any]:
    content = json.loads((study.folder / run.folder / "finished.json").read_text())
    assert isinstance(content, dict)
    return content


def test_a_finished_run_tells_all_that_a_report_needs(finished: Study, data: Path) -> None:
    found = record(finished, BASELINE)
    assert (found["arm"], found["training"], found["unlabelled"]) == ("baseline", 2, 0)
    # two steps an epoch: the third update needs a second epoch
    assert found["updates"] == 4
    assert [point["update"] for point in found["curve"]] == [2, 4]
    assert 0 < found["curve"][0]["seconds"] < found["curve"][1]["seconds"]
    assert found["training_seconds"] == pytest.approx(found["curve"][1]["seconds"], rel=1e-5)
    assert all(0 <= point["val_mean_dice"] <= 1 for point in found["curve"])
    assert set(found["scores"]) == {case["case"] for case in select(finished.datalist)[1]}
    maps = [prediction(finished.folder / BASELINE.folder, case) for case in found["scores"]]
    assert all(path.is_file() for path in maps)
    assert found["threads"] >= 1
    assert found["training_ids"] == training_cases(
        run_datalist(finished.datalist, BASELINE), BASELINE
    )
    assert len(found["training_ids"]) == 2
    assert {"dice_tc", "dice_wt", "dice_et", "hd95_wt"} <= set(next(iter(found["scores"].values())))
    assert found["settings"]["mod"] == {}
    assert (found["settings"]["device"], found["settings"]["amp"]) == ("cpu", False)
    noted = record(finished, WEIGHTLESS)["settings"]["mod"]
    assert noted["tokenizer"]["class_momentum"] == 0.99


def test_a_run_has_its_whole_config_in_one_file(finished: Study) -> None:
    folder = finished.folder / WEIGHTLESS.folder
    config, given = (
        ConfigParser.load_config_file(str(folder / name)) for name in ("config.json", "run.json")
    )
    plain = finished.folder / "bundles" / "unetr_mod" / "configs" / "train.json"
    assert set(config) == set(ConfigParser.load_config_file(str(plain))) | set(given) - {
        "network_def#res_block"
    }
    assert config["network_def"]["res_block"] is False
    assert config["mod_weight"] == 0
    assert config["ckpt_dir"] == str(folder / "models")


def test_arms_share_weights_cases_crops_and_augmentation(finished: Study) -> None:
    """With MOD's losses at weight 0 the network ends as the plain one does, bit for bit."""
    plain, with_mod = (
        torch.load(finished.folder / run.folder / "models" / "final.pt", weights_only=True)
        for run in (BASELINE, WEIGHTLESS)
    )
    assert plain.keys() == with_mod.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, with_mod[name]), name
    assert "loss_token" in record(finished, WEIGHTLESS)["losses"][0]


def test_what_has_run_is_not_run_again(finished: Study) -> None:
    paths = [finished.folder / run.folder / "finished.json" for run in (BASELINE, WEIGHTLESS)]
    before = [path.stat().st_mtime_ns for path in paths]
    assert finished.pending() == []
    assert finished.carry_out() == []
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_plan_that_has_changed_is_refused(finished: Study, studies: Open) -> None:
    with pytest.raises(SettingsError, match="other settings than the plan's"):
        studies(updates=30)
    more = studies(seeds=[3, 4])
    assert [run.seed for run in more.pending()] == [4, 4]


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on(finished: Study, studies: Open) -> None:
    # as many threads as the undisturbed run had: others round otherwise
    study = studies(name="cut", arms={"baseline": PLAN["arms"]["baseline"]})
    folder = study.folder / BASELINE.folder
    folder.mkdir(parents=True)
    (folder / "test").write_text("in the way of the evaluation")
    with pytest.raises(TrainingError, match=r"evaluate\.log"):
        study.carry_out(jobs=2)
    assert study.pending() == [BASELINE]
    (folder / "test").unlink()
    study.carry_out(jobs=2)
    assert "nothing left to train" in (folder / "train.log").read_text()
    assert record(study, BASELINE)["scores"] == record(finished, BASELINE)["scores"]


def test_a_finished_run_on_other_cases_is_refused(finished: Study) -> None:
    """A case more may change which ones a seed chooses."""
    fewer = {**finished.datalist, "validation": finished.datalist["validation"][:-1]}
    with pytest.raises(SettingsError, match="on other cases"):
        replace(finished, datalist=fewer).pending()
    renamed = [{**case, "case": f"a{case['case']}"} for case in finished.datalist["training"]]
    with pytest.raises(SettingsError, match="on other cases"):
        replace(finished, datalist={**finished.datalist, "training": renamed}).pending()


def test_a_damaged_record_is_named(studies: Open) -> None:
    study = studies(name="damaged")
    path = study.folder / BASELINE.folder / "finished.json"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(DataError, match=r"record .*finished\.json can't be read .* Remove "):
        study.pending()


@pytest.fixture
def begun(studies: Open, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Carries out the baseline until its training would start: whether that would resume."""

    def carried_out(**changes: Any) -> bool:
        study = studies(name="changed", **changes)
        seen = []

        def start(*_: Any) -> None:
            seen.append(json.loads((study.folder / BASELINE.folder / "run.json").read_text()))
            raise TrainingError("cut")

        monkeypatch.setattr("mod_components.study.run._bundle", start)
        assert isinstance(study.attempt(BASELINE), TrainingError)
        return bool(seen[0]["resume"])

    return carried_out


def test_a_cut_run_goes_on_unless_its_plan_has_changed(
    studies: Open, begun: Callable[..., bool]
) -> None:
    study = studies(name="changed")
    state = study.folder / BASELINE.folder / "models" / "last.pt"
    assert not begun()
    state.parent.mkdir(parents=True)
    state.write_bytes(b"of the plan before")
    assert begun()
    studies(name="changed", updates=30)  # looking at a plan changes nothing
    assert begun()
    assert not begun(updates=30)
    settings = json.loads((study.folder / BASELINE.folder / "run.json").read_text())
    assert settings["study_threads"] == [torch.get_num_threads()]
    # a second cut, before anything was saved: the state of the plan before must not come back
    assert not begun(updates=30)
    assert state.with_name("replaced.pt").read_bytes() == b"of the plan before"


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_run(studies: Open) -> None:
    arms = {"broken": {"use_mod": False, "learning_rate": "fast"}, "baseline": {"use_mod": False}}
    study = studies(name="broken", arms=arms)
    with pytest.raises(TrainingError, match=r"broken/n2/own_split/seed3 failed") as error:
        study.carry_out()
    assert "train.log" in str(error.value)
    assert [run.arm for run in study.pending()] == ["broken"]


@pytest.mark.slow
def test_probes_train_on_a_frozen_encoder(studies: Open) -> None:
    arms = {
        "mod": {},
        "linear": {"use_mod": False, "start_from": "mod", "probe": "linear"},
        "strict": {"use_mod": False, "start_from": "mod", "probe": "strict"},
    }
    study = studies(name="probes", arms=arms)
    assert [[run.arm for run in stage] for stage in study.stages()] == [
        ["mod"],
        ["linear", "strict"],
    ]
    study.carry_out(jobs=2)
    weights = {
        arm: torch.load(
            study.folder / Run("unetr_mod", arm, 2, -1, 3).folder / "models" / "final.pt",
            weights_only=True,
        )
        for arm in arms
    }
    encoder = {name for name in weights["mod"] if name.startswith("vit.")}
    for name, tensor in weights["mod"].items():
        assert torch.equal(tensor, weights["linear"][name]) == (name in encoder), name
        assert torch.equal(tensor, weights["strict"][f"encoder.{name}"])
    assert {n for n in weights["strict"] if not n.startswith("encoder.")} == {
        "head.weight",
        "head.bias",
    }
    for arm in ("linear", "strict"):
        found = record(study, Run("unetr_mod", arm, 2, -1, 3))
        assert (found["probe"], found["start_from"]) == (arm, "mod")
        assert found["scores"]


@pytest.mark.slow
def test_a_start_without_labels(studies: Open) -> None:
    nothing = {"_target_": "mod_components.losses.NoSegmentationLoss"}
    arms = {
        "baseline": {"use_mod": False},
        "without_labels": {"loss": nothing, "labelled": 0, "evaluate": False},
        "after": {"use_mod": False, "start_from": "without_labels", "learning_rate": 0},
    }
    study = studies(name="start", arms=arms)
    assert isinstance(study.attempt(Run("unetr_mod", "after", 2, -1, 3)), TrainingError)
    study.carry_out()
    first = record(study, Run("unetr_mod", "without_labels", 0, -1, 3))
    assert first["scores"] == {}
    assert first["training"] > 2
    assert {row["loss_seg"] for row in first["losses"]} == {0}
    begun, after = (
        torch.load(study.folder / run.folder / "models" / "final.pt", weights_only=True)
        for run in (
            Run("unetr_mod", "without_labels", 0, -1, 3),
            Run("unetr_mod", "after", 2, -1, 3),
        )
    )
    for name, tensor in begun.items():
        assert torch.equal(tensor, after[name]), name


def test_a_run_of_another_process_is_left_alone(studies: Open) -> None:
    study = studies(name="taken")
    folder = study.folder / BASELINE.folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert study.attempt(BASELINE) is None
    assert BASELINE in study.pending()


def test_a_claim_lasts_as_long_as_the_training_that_a_killed_study_left(tmp_path: Path) -> None:
    with _claimed(tmp_path) as lock:
        assert lock is not None
        left = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with _claimed(tmp_path) as other:
        assert other is None
    left.kill()
    left.wait()
    with _claimed(tmp_path) as free:
        assert free is not None


def test_a_folder_that_can_not_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with _claimed(tmp_path) as lock:
        assert lock is not None
    assert "start it in one process alone" in caplog.text


def test_what_begins_with_a_run_waits_for_it(studies: Open) -> None:
    arms = {"baseline": {"use_mod": False}, "after": {"start_from": "baseline"}}
    study = studies(name="waits", arms=arms)
    result = study.attempt(Run("unetr_mod", "after", 2, -1, 3))
    assert isinstance(result, TrainingError)
    assert re.search(r"begins with the weights of .*baseline.*, which is not finished", str(result))


class Cluster:
    """Stands in for submitit: what was asked of it."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.parameters, self.jobs = known, {}, []
        self.cluster, self.refusal = "", ""

    def AutoExecutor(self, folder: Path, cluster: str) -> Cluster:  # noqa: N802
        self.cluster = cluster
        return self

    def update_parameters(self, **parameters: Any) -> None:
        if wrong := set(parameters) - self.known:
            raise NameError(f"unknown {wrong}")
        self.parameters = parameters

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        if self.refusal:  # sbatch is called at the batch's end
            raise RuntimeError(self.refusal)

    def submit(self, *job: Any) -> SimpleNamespace:
        self.jobs.append(job)
        return SimpleNamespace(job_id=len(self.jobs))


def test_runs_are_handed_to_slurm(studies: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {**PLAN["arms"], "after": {"start_from": "baseline"}}
    study = studies(name="slurm", arms=arms)
    cluster = Cluster({"name", "timeout_min"})
    monkeypatch.setitem(sys.modules, "submitit", cluster)
    assert study.submit({"timeout_min": 9}) == ["1", "2"]
    assert cluster.cluster == "slurm", "submitit's own choice without SLURM is this machine"
    assert cluster.parameters == {"name": "study_slurm", "timeout_min": 9}
    # what begins with another run's weights waits for it
    assert [job[1:] for job in cluster.jobs] == [(study, BASELINE), (study, WEIGHTLESS)]
    with pytest.raises(SettingsError, match=r"submitit does not take .*partition"):
        study.submit({"partition": "gpu", "timeout_min": 9})
    with pytest.raises(SettingsError, match="how long a run may take"):
        study.submit({})
    cluster.refusal = "invalid partition"
    with pytest.raises(SettingsError, match="invalid partition"):
        study.submit({"timeout_min": 9})


def test_no_run_waits_for_another_than_its_own(
    studies: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {**PLAN["arms"], "after": {"start_from": "baseline"}}
    study = studies(name="ready", arms=arms)
    after = replace(BASELINE, arm="after")
    monkeypatch.setattr(Study, "_is_finished", lambda _study, run: run == BASELINE)
    assert study.ready() == [WEIGHTLESS, after], "one that is pending keeps no other from running"
    with _claimed(study.folder / WEIGHTLESS.folder) as lock:
        assert lock is not None
        assert study.ready() == [after], "another process is at it"


def test_a_job_needs_a_lock(studies: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: Any, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(TrainingError, match="two jobs could train in it"):
        _job(studies(name="unlocked"), BASELINE)


def test_a_study_takes_its_table_along(studies: Open, data: Path, tmp_path: Path) -> None:
    row = {**backbones()["unetr"], "title": "mine"}
    (tmp_path / "rows.json").write_text(json.dumps({"unetr": row}))
    study = studies(name="table", table=str(tmp_path / "rows.json"))
    moved = tmp_path / "elsewhere"
    shutil.copytree(study.folder, moved)
    (tmp_path / "rows.json").unlink()
    again = open_study(moved / "plan.json", moved, str(data))
    assert again.plan.rows["unetr"]["title"] == "mine"
    assert again.plan.digest(BASELINE) == study.plan.digest(BASELINE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundles": ["resnet_mod"]}, "no resnet_mod; there are vit_mod"),
        ({"bundles": ["unetr"]}, "no unetr; there are vit_mod"),
        ({"settings": {"batch_size": "@nothing"}}, "arm baseline: batch_size can't be evaluated"),
        ({"settings": {"batchsize": 2}}, "has no setting batchsize"),
        ({"labelled": [9]}, "asks for 9 cases"),
        ({"settings": {"network_def#nonsense": 1}}, "unetr_mod, arm baseline: its network can't"),
        ({"arms": {"a": {"weights": "model_ema.pt"}}}, 'kept with "use_ema": true alone'),
        ({"arms": {"a": {}, "b": {"start_from": "a", "probe": "strict"}}}, "without MOD"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(
    studies: Open, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        studies(name="wrong", **changes)
