"""A bundle as packing makes it, with a small network, and copies of it to spoil."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from mod_components.release import backbones, render_bundle
from mod_components.release.card import card_values, metadata_values
from mod_components.release.trained import trained_row
from mod_components.release.vendor import config_modules, vendored_files, vendored_name
from tests.backbones import build_network, small_settings

PACKAGE = vendored_name()
ROI = (64, 64, 64)


def record(name: str = "swinunetr") -> dict[str, Any]:
    """What a training of the small network writes beside its weights, packed."""
    row, settings = backbones()[name], small_settings(name)
    values = {**row["network_settings"], **settings, "roi_size": list(ROI)}
    definition = {
        key.strip("_"): values[value[1:]] if str(value).startswith("@") else value
        for key, value in row["network_def"].items()
    }
    definition["target"] = definition["target"].replace("mod_components.", f"{PACKAGE}.")
    return {
        "settings": {
            "bundle": f"{name}_mod",
            "dataset_dir": "BraTS2021",
            "training_cases": 12,
            "overlap": 0.25,
            **values,
            "network": definition,
        },
        "epoch": 3,
        "iteration": 36,
        "metrics": {"val_mean_dice": 0.5},
        "versions": {"mod_components": "0.1.0", "monai": "1.6.1"},
        "command": ["run", "--config_file", "train.json", "--dataset_dir", "BraTS2021"],
    }


def make_bundle(parent: Path, name: str = "swinunetr") -> Path:
    """Write the bundle into ``parent`` and return its folder."""
    folder = parent / f"{name}_mod"
    torch.manual_seed(0)
    network, training = build_network(name, ROI), record(name)
    row = trained_row(backbones()[name], training["settings"], folder / "models/training.json")
    row["parameters"] = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M"
    values = {**card_values(training, row, package=PACKAGE), **metadata_values(training, row)}
    texts = render_bundle(name, {name: row}, package=PACKAGE, values=values)
    configs = [text for path, text in texts.items() if path.startswith("configs/")]
    texts |= vendored_files(PACKAGE, config_modules(configs, PACKAGE))
    texts["models/training.json"] = json.dumps(training, indent=4) + "\n"
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def copy_bundle(good: Path, parent: Path) -> Path:
    """A copy to spoil; its weights are the same file until :func:`save_weights` replaces them."""
    folder = parent / good.name
    shutil.copytree(good, folder, ignore=shutil.ignore_patterns("model.pt"))
    os.link(good / "models" / "model.pt", folder / "models" / "model.pt")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a bundle."""
    return dict(torch.load(folder / "models" / "model.pt", weights_only=True))


def save_weights(folder: Path, content: Any) -> None:
    """Replace the weights of a copy."""
    path = folder / "models" / "model.pt"
    path.unlink()
    torch.save(content, path)


def edit(folder: Path, path: str, **changes: Any) -> None:
    """Set ids of a JSON file, such as ``train#trainer#max_epochs``; None removes one."""
    file = folder / path
    document = json.loads(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *parents, last = name.split("#")
        node = document
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        at = int(last) if isinstance(node, list) else last
        if value is None:
            del node[at]
        else:
            node[at] = value
    file.write_text(json.dumps(document, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def make_zip(folder: Path, target: Path) -> Path:
    """Zip a bundle's folder as packing does."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return target
