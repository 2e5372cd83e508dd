"""What earlier runs left in a folder of checkpoints: moved aside, and told of."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from mod_components.errors import CheckpointError
from mod_components.files import DATALIST, POSTPROCESSING, copy_atomically

__all__ = [
    "LAST",
    "MODEL",
    "PREVIOUS",
    "REPORT",
    "began_with_weights",
    "epoch_states",
    "history",
    "keep_earlier",
    "refuse_previous",
]

logger = logging.getLogger("mod_components.checkpoint")

MODEL, LAST, REPORT, PREVIOUS = "model.pt", "last.pt", "training.json", "previous"
OF_A_MODEL = (MODEL, REPORT, DATALIST, POSTPROCESSING)
RUN_FILES = (*OF_A_MODEL, "model_ema.pt", LAST)


def keep_earlier(folder: Path, init_from: str = "") -> None:
    """Keep an earlier run's files in ``previous/``, in place of those of the run before it.

    Its ``model.pt`` and what belongs to it stay where they are, too, until the new run saves its
    own: a server goes on using them, and an evaluation must know which cases trained it. So does
    the file that the new run began with, for it may be started again.

    Args:
        folder: of the checkpoints.
        init_from: the weights that the new run begins with; empty for none.
    """
    states = [path.name for path in epoch_states(folder)]
    present = [name for name in (*RUN_FILES, *states) if (folder / name).is_file()]
    if not present:
        return
    kept = folder / PREVIOUS
    kept.mkdir(exist_ok=True)
    own, other = folder / MODEL, kept / MODEL
    # the same where a run was cut before it saved: then the rest of that set is there too
    known = own.is_file() and other.is_file() and filecmp.cmp(own, other, shallow=False)
    for path in () if known else (*(kept / name for name in RUN_FILES), *epoch_states(kept)):
        path.unlink(missing_ok=True)
    start = Path(init_from).resolve() if init_from else None
    for name in present:
        if name in OF_A_MODEL or (folder / name).resolve() == start:
            copy_atomically(folder / name, kept / name)
        else:
            os.replace(folder / name, kept / name)
    logger.info("files of an earlier run are now in %s", kept)


def refuse_previous(init_from: str, folder: Path) -> None:
    """Refuse to begin with weights that are among those which the run will remove.

    Args:
        init_from: the weights; empty for none.
        folder: of the run's checkpoints.

    Raises:
        CheckpointError: if they are in its ``previous/``.
    """
    kept = folder / PREVIOUS
    if init_from and Path(init_from).resolve().parent == kept.resolve():
        raise CheckpointError(
            f"{init_from} is in {kept}, where this run puts what is in {folder} now: copy it to "
            "another folder first, or give another --ckpt_dir."
        )


def epoch_states(folder: Path) -> list[Path]:
    """States of single epochs, by the names that are given here: others are the user's own."""
    return [p for p in folder.glob("epoch_*.pt") if re.fullmatch(r"epoch_[0-9]{4,}\.pt", p.name)]


def began_with_weights(path: Path) -> bool:
    """Whether the run of a ``training.json`` began with another one's weights."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["settings"]["pretrained"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def history(path: Path, resumed: bool) -> list[dict[str, Any]]:
    """What the weights that a run starts from were trained on, the earliest first.

    Args:
        path: the ``training.json`` of the run that they are of.
        resumed: whether that is the run itself.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        keys = ("dataset_dir", "training_cases", "epochs")
        last = [] if resumed else [{key: report["settings"].get(key) for key in keys}]
        return [*report.get("history", []), *last]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [{"dataset_dir": "unknown"}]
