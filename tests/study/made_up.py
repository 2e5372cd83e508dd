"""Studies whose finished runs are made up: records as a run writes them, without a training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mod_components.study import Run, read_plan

ARMS: dict[str, Any] = {
    "baseline": {"use_mod": False},
    "mod": {},
    "scans": {"weights": "model_ema.pt"},
}
PLAN: dict[str, Any] = {
    "name": "made up",
    "about": "Does MOD help with few labelled cases?",
    "dataset_dir": "somewhere/Task00_MadeUp",
    "bundles": {"unetr_mod": {}, "vit_mod": {"hidden_size": 48}},
    "arms": ARMS,
    "labelled": [5, 0],
    "folds": [0, 1],
    "seeds": [1, 2],
    "updates": 100,
    "validations": 4,
}
GAIN = {"baseline": 0.0, "mod": 0.04, "scans": 0.06}
ALL_CASES = 12

Change = Callable[[Run, dict[str, Any]], None]


def make_study(
    folder: Path,
    change: Change | None = None,
    skip: Callable[[Run], bool] = lambda run: False,
    **plan: Any,
) -> Path:
    """A study's folder with a plan and the records of its runs.

    Args:
        folder: where; it is made.
        change: changes a run's record before it is written.
        skip: runs that are not finished.
        plan: what differs from :data:`PLAN`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({**PLAN, **plan}))
    read = read_plan(folder / "plan.json")
    for run in read.runs():
        if not skip(run):
            content = record(run, read.digest(run))
            if change:
                change(run, content)
            write(folder, run, content)
    return folder


def write(folder: Path, run: Run, content: dict[str, Any]) -> Path:
    path = folder / run.folder / "finished.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def load(folder: Path, run: Run) -> dict[str, Any]:
    content = json.loads((folder / run.folder / "finished.json").read_text())
    assert isinstance(content, dict)
    return content


def record(run: Run, digest: str) -> dict[str, Any]:
    """A finished run: arms differ by GAIN, and runs, cases and regions by chance."""
    chance = random.Random(str(run))
    level = 0.6 + GAIN.get(run.arm, 0.02) + chance.gauss(0, 0.02) + (0.1 if not run.labelled else 0)
    training = run.labelled or ALL_CASES
    seconds = 2.0 if run.arm == "baseline" else 3.0
    curve = [
        {
            "update": update,
            "seconds": seconds * update,
            "val_mean_dice": level * update / (update + 20),
            **{f"val_dice_{region}": 0.5 for region in ("tc", "wt", "et")},
        }
        for update in (25, 50, 75, 100)
    ]
    return {
        **vars(run),
        "digest": digest,
        "training": training,
        "unlabelled": 0,
        "updates": 100,
        "training_seconds": seconds * 100,
        "threads": 2,
        "curve": curve,
        "losses": [{"update": 100, "loss": 1.0, "seconds": 9.0}],
        "scores": scores(run, level, chance),
        "settings": {"dataset_dir": "Task00_MadeUp", "batch_size": 2, "roi_size": [64, 64, 32]},
        "versions": {"torch": "2.4.0"},
    }


def scores(run: Run, level: float, chance: random.Random) -> dict[str, dict[str, float]]:
    """Scores of four held-out cases, the same ones for all runs of a fold."""
    found = {}
    for number in range(4):
        case = f"case_{run.fold}_{number}"
        difficulty = random.Random(case).gauss(0, 0.05)
        found[case] = {
            f"{metric}_{region}": round(value + chance.gauss(0, 0.01), 6)
            for metric, value in (("dice", level - difficulty), ("hd95", 10 + 40 * difficulty))
            for region in ("tc", "wt", "et")
        }
    return found
