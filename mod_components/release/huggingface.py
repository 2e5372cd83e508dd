"""A packed bundle as a folder that is ready to become a repository of Hugging Face."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mod_components.errors import SettingsError
from mod_components.release.card import CURVES
from mod_components.release.provenance import figures

__all__ = ["model_card", "write_folder"]

ATTRIBUTES = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("pt", "ts"))
TAGS = ("medical", "monai", "brain-tumour", "mri", "segmentation", "3d")
METRICS = {
    "val_mean_dice": "Dice, mean of the three regions",
    "val_dice_tc": "Dice, tumour core",
    "val_dice_wt": "Dice, whole tumour",
    "val_dice_et": "Dice, enhancing tumour",
}


def model_card(name: str, card: str, training: Mapping[str, Any]) -> str:
    """The ``README.md`` at the repository's root: YAML front matter and the bundle's own card.

    Args:
        name: the bundle's name, such as ``swinunetr_mod``.
        card: its ``docs/README.md``.
        training: content of ``training.json``; figures are those that it has, and there is no
            ``model-index`` without any.
    """
    lines = [
        "license: apache-2.0",
        "library_name: monai",
        "pipeline_tag: image-segmentation",
        "tags:",
        *(f"- {tag}" for tag in TAGS),
        *_model_index(name, training),
    ]
    card = card.replace(f"]({CURVES})", f"](docs/{CURVES})")  # it stands one folder higher
    return "\n".join(["---", *lines, "---", "", card])


def write_folder(
    folder: str | Path,
    files: Mapping[str, bytes | Path],
    training: Mapping[str, Any],
) -> Path:
    """Write the files of a packed bundle with what Hugging Face wants beside them.

    A folder that is there already is replaced as a whole, when the new one is complete. Its
    ``.git`` is kept, whenever the process is killed: the next call finds it.

    Args:
        folder: the folder; its last part is the bundle's name.
        files: contents, or the files that hold them, by path inside the bundle.
        training: content of ``training.json`` as it is packed.

    Returns:
        The folder.

    Raises:
        SettingsError: when an earlier call was killed and left a second ``.git``.
    """
    folder = Path(folder)
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    for left in (temporary, old):
        _rescue_git(left, folder)
        if left.exists():
            shutil.rmtree(left)
    card = files["docs/README.md"]
    text = (card.read_bytes() if isinstance(card, Path) else card).decode()
    everything = {
        **files,
        "README.md": model_card(folder.name, text, training).encode(),
        ".gitattributes": ATTRIBUTES.encode(),
    }
    for path, content in everything.items():
        target = temporary / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    if (old / ".git").exists():
        (old / ".git").rename(folder / ".git")
    shutil.rmtree(old, ignore_errors=True)  # a file in use goes the next time
    return folder


def _rescue_git(left: Path, folder: Path) -> None:
    """Move the ``.git`` that a killed call has left in another folder back."""
    found, own = left / ".git", folder / ".git"
    if not found.exists():
        return
    if own.exists():
        raise SettingsError(
            f"{found} and {own} are both there, and only one can be kept: remove the other."
        )
    folder.mkdir(exist_ok=True)
    found.rename(own)


def _model_index(name: str, training: Mapping[str, Any]) -> list[str]:
    """Lines of the figures that were measured, as YAML."""
    found = figures(training)
    measured = {key: found.get(key) for key in METRICS}
    entries = [
        [
            "    - type: dice",
            f"      name: {json.dumps(METRICS[key])}",
            f"      value: {value:.4f}",
        ]
        for key, value in measured.items()
        if value is not None
    ]
    if not entries:
        return []
    settings = training["settings"]
    # JSON's strings are YAML's too, whatever a data set is called
    data = json.dumps(str(settings.get("dataset_dir", "unknown")))
    split = f"{settings.get('validation_cases', '?')} validation cases, which chose the epoch"
    return [
        "model-index:",
        f"- name: {name}",
        "  results:",
        "  - task:",
        "      type: image-segmentation",
        "    dataset:",
        f"      name: {data}",
        f"      type: {data}",
        f"      split: {json.dumps(split)}",
        "    metrics:",
        *(line for entry in entries for line in entry),
    ]
