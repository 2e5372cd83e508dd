"""What a training leaves behind, made in a second: small networks with first weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from tests.backbones import small_settings
from tests.bundles.conftest import REPOSITORY

BUNDLES = REPOSITORY / "bundles"
METRICS = {
    "val_mean_dice": 0.625373,
    "val_dice_tc": 0.646743,
    "val_dice_wt": 0.704541,
    "val_dice_et": 0.524835,
}


def make_run(
    folder: Path,
    name: str,
    *,
    roi_size: Sequence[int] = (64, 64, 64),
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """``models/`` of a training of a small network on the sample.

    Args:
        folder: the run's folder.
        name: short name of the backbone.
        roi_size: crop of the training.
        options: what the command line of the training would have had beside that.
        settings: what ``training.json`` says in ``settings`` in place of the rest.
        record: what it says beside ``settings``.

    Returns:
        The folder.
    """
    given = {"roi_size": list(roi_size), **small_settings(name), **(options or {})}
    config = BUNDLES / f"{name}_mod" / "configs" / "train.json"
    workflow = ConfigWorkflow(str(config), logging_file=False, workflow_type=None, **given)
    parser = workflow.parser
    names = [
        key for key in parser["settings"] if not str(parser["settings"][key]).startswith("$@data")
    ]
    noted = {key: parser.get_parsed_content(f"settings#{key}") for key in names}
    noted |= {"dataset_dir": "embedded sample", "layout": "brats", "training_cases": 12}
    noted |= {"validation_cases": 4, "unlabelled_cases": 0, "epochs": 3}
    noted |= {"fold": -1, "validated_on_training": False, **(settings or {})}
    content = {
        "settings": noted,
        "epoch": 2,
        "iteration": 24,
        "metrics": METRICS,
        "versions": {"mod_components": "0.1.0", "monai": "1.6.1"},
        "command": ["/opt/python/monai/bundle/__main__.py", "run", "--config_file", str(config)],
        **(record or {}),
    }
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    network = parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), models / "model.pt")
    (models / "training.json").write_text(json.dumps(content, indent=4, default=str) + "\n")
    for other in ("last.pt", "model_ema.pt"):
        torch.save({"secret": 1}, models / other)
    (models / "previous").mkdir(exist_ok=True)
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / "train.csv").write_text("epoch,loss\n")
    return folder
