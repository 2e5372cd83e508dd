"""Words of the model card and values of the metadata that follow from a training's own record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mod_components.data.prepare import LISTED
from mod_components.release.provenance import (
    data_text,
    earlier,
    figures,
    on_sample_alone,
    origin_text,
    validated_on_sample,
)

__all__ = ["CURVES", "PACKAGE", "card_values", "metadata_values"]

PACKAGE = __name__.partition(".")[0]
CURVES = "curves.png"
"""Beside the card: the curves of the training. A packed ``training.json`` names it."""

REGION_NAMES = {
    "tc": "tumour core",
    "wt": "whole tumour",
    "et": "enhancing tumour",
}
LIMITS = (
    "Intended use: research. Not a medical device: neither for diagnosis nor for planning a "
    "treatment. It expects the four modalities skull-stripped, registered to each other and "
    "resampled to 1 mm, as BraTS distributes them; what it makes of scans of other scanners, "
    "protocols, ages or diseases is not known. Every label map needs a look by somebody who can "
    "judge it."
)
TRAIN = "python -m monai.bundle run --config_file CONFIGS/train.json"
EVALUATE = "python -m monai.bundle run --config_file CONFIGS/evaluate.json"
DETERMINISM = (
    "On the CPU a training is deterministic for a given seed and number of workers; on a GPU some "
    "operations are not."
)


def card_values(
    training: Mapping[str, Any] | None,
    row: Mapping[str, Any],
    *,
    package: str = PACKAGE,
    with_datalist: bool = False,
) -> dict[str, str]:
    """Texts for the placeholders of the model card's template.

    Args:
        training: content of ``training.json``; None for a bundle without weights.
        row: the backbone's row, with the values of the training where there is one.
        package: the name of this package's code that the configs name; another one than ours lies
            in the bundle itself.
        with_datalist: whether the list of the cases is in the bundle.

    Returns:
        Texts by placeholder. They tell what is recorded, and where nothing is recorded they say so.
    """
    values = {
        "limits_text": LIMITS,
        "network_text": _network_text(row, package),
        "install_text": _install_text(row, package),
        "crop_text": _crop_text(row, training is not None),
        "use_text": _use_text(package),
        "method_text": _method_text(_parts(training)),
        "loss_text": _loss_text(training),
        "mod_text": f"\n- MOD reads the {row['tap_text']}." if _parts(training) else "",
    }
    if training is None:
        return values | _without_weights()
    return values | {
        "weights_text": _weights_text(training),
        "configuration_text": _configuration_text(training),
        "performance_text": _performance_text(training),
        "evaluate_text": _evaluate_text(training, with_datalist),
        "weights_terms_text": _terms_text(training, with_datalist),
    }


def metadata_values(training: Mapping[str, Any] | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the placeholders of ``configs/metadata.json``.

    Args:
        training: content of ``training.json``; None for a bundle without weights.
        row: the backbone's row.

    Returns:
        ``eval_metrics`` (measured figures by name, empty without any), ``data_source``,
        ``description`` and ``metadata_name``.
    """
    parts = _parts(training)
    how = (
        f"with MOD ({', '.join(parts)}), which leaves no trace in the trained network"
        if parts
        else "without MOD"
    )
    description = (
        f"{row['title']} for 3D segmentation of brain tumour subregions in four MRI modalities, "
        f"trained {how}"
    )
    name = f"{row['title']} with MOD" if parts else row["title"]
    if training is None:
        return {
            "eval_metrics": {},
            "data_source": "https://www.synapse.org/brats",
            "description": description,
            "metadata_name": name,
        }
    measured = {
        name.removeprefix("val_"): round(value, 4) for name, value in figures(training).items()
    }
    source = origin_text(training)
    warning = " Not for use on patients' scans." if on_sample_alone(training) else ""
    return {
        "eval_metrics": measured,
        "data_source": source[0].upper() + source[1:],
        "description": f"{description}. {_trained(training)} on {source}.{warning}",
        "metadata_name": name,
    }


def _without_weights() -> dict[str, str]:
    return {
        "weights_text": "This bundle ships no weights. What it was trained on, when and with "
        "which result stands in `models/training.json` after a training.",
        "configuration_text": "On data of one's own, as published: AdamW, learning rate 0.001, "
        "weight decay 0.05, 2 epochs of warm-up (two thirds of a training of fewer than 3), then "
        "cosine; 300 epochs; 4 crops a GPU. Not as published: the weights of MOD's losses "
        "(`mod_weight` and `predictor_weight` in `configs/train.json`).",
        "performance_text": "No weights are shipped, so there is no figure to give. "
        f"`evaluate.json` writes the figures of your own training. {DETERMINISM}",
        "evaluate_text": "Evaluate on the held-out cases, or on another labelled data set "
        f"(scores, label maps and `report.html`):\n\n```\n{EVALUATE}\n{EVALUATE} "
        "--dataset_dir /data/other\n```",
        "weights_terms_text": "This bundle contains no data and no weights trained on data of "
        "others.",
    }


def _trained(training: Mapping[str, Any]) -> str:
    return "Fine-tuned" if earlier(training) else "Trained"


def _parts(training: Mapping[str, Any] | None) -> list[str]:
    """The parts of MOD that took part in a training; all of them before there is one."""
    settings = {} if training is None else training["settings"]
    tokenizer, predictor = (
        settings.get(f"use_{name}", True) for name in ("tokenizer", "predictor")
    )
    parts = {"Online Tokenizer": tokenizer, "Dense Predictor": predictor, "EMA teacher": tokenizer}
    return [name for name, used in parts.items() if used]


def _method_text(parts: Sequence[str]) -> str:
    if not parts:
        return "trained **without** MOD, as this bundle's baseline is"
    if len(parts) == 3:
        return (
            "trained with **MOD**: an Online Tokenizer, a Dense Predictor and an EMA teacher that "
            "add two self-supervised losses to the training and nothing to the network"
        )
    return (
        f"trained with a part of **MOD**, its {' and '.join(parts)}, which adds a self-supervised "
        "loss to the training and nothing to the network"
    )


def _loss_text(training: Mapping[str, Any] | None) -> str:
    parts = _parts(training)
    losses = [
        *(["token", "class"] if "Online Tokenizer" in parts else []),
        *(["reconstruction"] if "Dense Predictor" in parts else []),
    ]
    text = "focal + Dice (sigmoid) on the three regions"
    if not losses:
        return text
    named = losses[0] if len(losses) == 1 else f"{', '.join(losses[:-1])} and {losses[-1]}"
    plural = "loss" if len(losses) == 1 else "losses"
    one = training is not None and training["settings"].get("views") == "one"
    views = "one masked view" if one else "two masked views"
    return f"{text}, plus MOD's {named} {plural} on {views}"


def _weights_text(training: Mapping[str, Any]) -> str:
    settings = training["settings"]
    facts = [
        f"{settings.get('training_cases', 'an unknown number of')} cases to train",
        f"{settings.get('validation_cases', 'an unknown number of')} to validate",
        f"{settings.get('unlabelled_cases', 0)} unlabelled",
        _fold_text(settings),
        f"epoch {training.get('epoch', '?')} of {settings.get('epochs', '?')}",
        f"crops of {_size(settings['roi_size'])} voxels" if "roi_size" in settings else "",
        f"seed {settings.get('seed', 'not recorded')}",
    ]
    origin = f"{_trained(training)} on {origin_text(training)}"
    text = f"**{origin}**: {', '.join(fact for fact in facts if fact)}."
    if on_sample_alone(training):
        text += (
            "\n\n**These weights have never seen a patient's scan. They are there to try things "
            "out: do not use them on patients' scans.**"
        )
    return text


def _fold_text(settings: Mapping[str, Any]) -> str:
    if settings.get("dataset_dir") == LISTED:  # whoever lists the cases has split them
        return ""
    fold = settings.get("fold")
    if fold is None or fold < 0:
        return "fold -1 (the data set's own split, or a fifth held out by the seed)"
    return f"fold {fold}"


def _network_text(row: Mapping[str, Any], package: str) -> str:
    target = str(row["network_def"]["_target_"])
    if "." not in target or target.startswith("monai."):  # MONAI finds its classes by bare names
        return f"MONAI's own `monai.networks.nets.{target.rpartition('.')[2]}`"
    if target.startswith(f"{PACKAGE}."):
        target = package + target.removeprefix(PACKAGE)
    return f"`{target}`"


def _install_text(row: Mapping[str, Any], package: str) -> str:
    if package != PACKAGE:
        return "It runs where this project is not installed."
    target = str(row["network_def"]["_target_"])
    owner = target.partition(".")[0] if "." in target else "monai"
    if owner == "monai":
        return "It runs where this project is not installed."
    return f"`{owner}` must be installed where it is loaded."


def _use_text(package: str) -> str:
    words = (
        "`CONFIGS` is the folder `configs` of this bundle; the commands work from any folder. "
        "Every setting at the top of a config file can be given on the command line."
    )
    if package == PACKAGE:
        return words
    return (
        "Unzip the bundle anywhere. What it needs of this project lies in its own folder "
        f"`{package}`, which its configs find by themselves; nothing else of the project need be "
        "installed. Inference needs MONAI, PyTorch, nibabel, Ignite and einops, the commands also "
        "fire; training and evaluation also matplotlib, scipy, tensorboard and tqdm "
        "(`configs/metadata.json` has the versions that it was tested with):\n\n"
        "```\npip install monai nibabel pytorch-ignite einops fire\n"
        f"pip install matplotlib scipy tensorboard tqdm\n```\n\n{words}"
    )


def _crop_text(row: Mapping[str, Any], trained: bool) -> str:
    crop, sample = _size(row["roi_size"]), _size(row["sample_roi_size"])
    if trained:
        return f"{crop} voxels"
    return f"{crop} voxels ({'on the sample too' if crop == sample else f'{sample} on the sample'})"


def _configuration_text(training: Mapping[str, Any]) -> str:
    """What the training was run with, as far as it is recorded."""
    settings = training["settings"]
    named = {
        "learning rate": "learning_rate",
        "weight decay": "weight_decay",
        "epochs of warm-up": "warmup_epochs",
        "epochs": "epochs",
        "crops a step": "batch_size",
    }
    if _parts(training):
        named |= {
            "weight of MOD's losses": "mod_weight",
            "the Dense Predictor's among them": "predictor_weight",
            "mask": "mask",
            "mask ratio": "mask_ratio",
            "mask cell in voxels": "mask_cell",
        }
    facts = [f"{name} {_number(settings[key])}" for name, key in named.items() if key in settings]
    return f"AdamW, cosine after the warm-up; for these weights {', '.join(facts)}."


def _performance_text(training: Mapping[str, Any]) -> str:
    curves = _curves_text(training)
    metrics = figures(training)
    if "val_mean_dice" not in metrics:
        return (
            "Not measured: the training had no validation, or none with a finite figure, when "
            f"these weights were written. {curves}{DETERMINISM}"
        )
    rows = [("mean of the three regions", metrics["val_mean_dice"])] + [
        (name, metrics[f"val_dice_{key}"])
        for key, name in REGION_NAMES.items()
        if f"val_dice_{key}" in metrics
    ]
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in rows)
    versions = ", ".join(f"{name} {v}" for name, v in training.get("versions", {}).items())
    cases = training["settings"].get("validation_cases", "the")
    return (
        f"Dice over {cases} validation cases of {data_text(training)}. {_caveat(training)}\n\n"
        f"| region | Dice |\n|---|---|\n{table}\n\n"
        f"Nothing else has been measured with these weights. Versions: {versions or 'not recorded'}"
        f". {curves}{DETERMINISM}"
    )


def _caveat(training: Mapping[str, Any]) -> str:
    """Why the figures are too good."""
    if training["settings"].get("validated_on_training"):
        return "The network was trained on these very cases: the figures tell nothing of others."
    known = (
        "The weights that the training began with may have been trained on some of them, and they"
        if earlier(training)
        else "The network was not trained on them, but they"
    )
    synthetic = " It says nothing about patients' scans." if validated_on_sample(training) else ""
    return (
        f"{known} chose the epoch whose weights these are, so that the figures are somewhat too "
        f"good for unseen cases.{synthetic}"
    )


def _curves_text(training: Mapping[str, Any]) -> str:
    if training.get("curves"):
        return f"The training's curves:\n\n![Curves of the training, by epoch]({CURVES})\n\n"
    return (
        "The curves of a training are written to `eval/train.csv`, `eval/validation.csv` and for "
        "TensorBoard. "
    )


def _evaluate_text(training: Mapping[str, Any], with_datalist: bool) -> str:
    if with_datalist:
        what = "Evaluate on the held-out cases of the data set that it was trained on"
        commands = [f"{EVALUATE} --dataset_dir /data/trained_on"]
    elif validated_on_sample(training):
        what = "Evaluate on the held-out cases of the embedded sample, which is made anew"
        commands = [EVALUATE]
    else:
        what = ""
        commands = []
    commands.append(f"{EVALUATE} --dataset_dir /data/other")
    what = f"{what}, or on another labelled data set" if what else "Evaluate on a labelled data set"
    told = (
        ""
        if with_datalist
        else " The bundle does not tell which cases it was trained on, so that nothing warns of "
        "an evaluation on these."
    )
    block = "\n".join(commands)
    return f"{what} (scores, label maps and `report.html`).{told}\n\n```\n{block}\n```"


def _terms_text(training: Mapping[str, Any], with_datalist: bool) -> str:
    data = "This bundle contains no data"
    if with_datalist:
        data += " (but the ids of the cases, in models/datalist.json)"
    if on_sample_alone(training):
        return f"{data}. Its weights were trained on the embedded sample alone."
    sets = "these data sets" if earlier(training) else "that data set"
    return (
        f"{data}. Its weights were {_trained(training).lower()} on {origin_text(training)}: the "
        f"terms of {sets}\nsay what may be done with them."
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(sides: Sequence[int]) -> str:
    return " x ".join(str(side) for side in sides)
