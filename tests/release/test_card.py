"""The card tells what was recorded, first of all what the weights were trained on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mod_components.release import backbones
from mod_components.release.card import card_values, metadata_values
from tests.release.runs import METRICS, make_run

ROW = backbones()["swinunetr"]


@pytest.fixture(scope="module")
def on_sample(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("run"), "swinunetr")
    return dict(json.loads((run / "models" / "training.json").read_text()))


@pytest.fixture
def on_data(on_sample: dict[str, Any]) -> dict[str, Any]:
    training = copy.deepcopy(on_sample)
    training["settings"] |= {
        **{"dataset_dir": "BraTS2021", "training_cases": 1000, "validation_cases": 251},
        **{"unlabelled_cases": 219, "fold": 3, "epochs": 300, "roi_size": [96, 96, 96]},
    }
    training["epoch"] = 285
    return training


def test_without_weights_there_is_no_figure() -> None:
    values = card_values(None, ROW)
    assert values["weights_text"].startswith("This bundle ships no weights.")
    assert "no figure to give" in values["performance_text"]
    assert values["crop_text"] == "128 x 128 x 128 voxels (64 x 64 x 64 on the sample)"
    assert values["network_text"] == "MONAI's own `monai.networks.nets.SwinUNETR`"
    assert values["install_text"] == "It runs where this project is not installed."
    metadata = metadata_values(None, ROW)
    assert metadata["eval_metrics"] == {}
    assert metadata["data_source"] == "https://www.synapse.org/brats"


def test_the_losses_of_one_view_are_not_said_to_be_of_two(on_data: dict[str, Any]) -> None:
    assert card_values(on_data, ROW)["loss_text"].endswith("losses on two masked views")
    on_data["settings"]["views"] = "one"
    assert card_values(on_data, ROW)["loss_text"].endswith("losses on one masked view")


def test_our_networks_need_the_package_or_its_copy() -> None:
    row = backbones()["segmamba"]
    values = card_values(None, row)
    assert values["network_text"] == "`mod_components.networks.SegMamba`"
    assert values["install_text"].startswith("`mod_components` must be installed")
    values = card_values(None, row, package="mod_components_1_2_3")
    assert values["network_text"] == "`mod_components_1_2_3.networks.SegMamba`"
    assert values["install_text"] == "It runs where this project is not installed."
    assert "its own folder `mod_components_1_2_3`" in values["use_text"]


def test_the_sample_is_called_what_it_is(on_sample: dict[str, Any]) -> None:
    values = card_values(on_sample, ROW)
    first, warning = values["weights_text"].split("\n\n")
    assert first == (
        "**Trained on the embedded sample of synthetic brains, computed by this project**: 12 "
        "cases to train, 4 to validate, 0 unlabelled, fold -1 (the data set's own split, or a "
        "fifth held out by the seed), epoch 2 of 3, crops of 64 x 64 x 64 voxels, seed 42."
    )
    assert "never seen a patient's scan" in warning
    assert "do not use them on patients' scans" in warning
    assert "It says nothing about patients' scans." in values["performance_text"]
    assert "on the embedded sample alone" in values["weights_terms_text"]
    metadata = metadata_values(on_sample, ROW)
    assert "synthetic" in metadata["data_source"]
    assert metadata["description"].endswith("Not for use on patients' scans.")


def test_data_of_ones_own_are_named(on_data: dict[str, Any]) -> None:
    values = card_values(on_data, ROW)
    assert values["weights_text"] == (
        "**Trained on the data set in the folder BraTS2021 (layout of BraTS 2018 to 2022)**: 1000 "
        "cases to train, 251 to validate, 219 unlabelled, fold 3, epoch 285 of 300, crops of "
        "96 x 96 x 96 voxels, seed 42."
    )
    assert "the terms of that data set" in values["weights_terms_text"]
    for text in (*values.values(), *metadata_values(on_data, ROW).values()):
        assert "synthetic" not in str(text)
        assert "sample alone" not in str(text)


def test_a_case_that_trained_and_validated_says_nothing(on_data: dict[str, Any]) -> None:
    on_data["settings"] |= {"validation_cases": 1, "validated_on_training": True}
    text = card_values(on_data, ROW)["performance_text"]
    assert "The network was trained on these very cases" in text
    assert "was not trained on them" not in text


def test_figures_are_those_of_the_record(on_data: dict[str, Any]) -> None:
    text = card_values(on_data, ROW)["performance_text"]
    assert text.startswith("Dice over 251 validation cases of the data set in the folder BraTS2021")
    assert "they chose the epoch" in text
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(name.strip(), float(value)) for name, value in cells] == [
        ("mean of the three regions", round(METRICS["val_mean_dice"], 4)),
        ("tumour core", round(METRICS["val_dice_tc"], 4)),
        ("whole tumour", round(METRICS["val_dice_wt"], 4)),
        ("enhancing tumour", round(METRICS["val_dice_et"], 4)),
    ]
    assert metadata_values(on_data, ROW)["eval_metrics"] == {
        **{"mean_dice": 0.6254, "dice_tc": 0.6467, "dice_wt": 0.7045, "dice_et": 0.5248}
    }
    on_data["metrics"] = {}
    assert card_values(on_data, ROW)["performance_text"].startswith("Not measured")
    assert metadata_values(on_data, ROW)["eval_metrics"] == {}


@pytest.mark.parametrize(
    ("tokenizer", "predictor", "method", "loss"),
    [
        (True, True, "trained with **MOD**: an Online Tokenizer, a Dense", "class and reconstruct"),
        (True, False, "a part of **MOD**, its Online Tokenizer and EMA teacher", "token and class"),
        (False, True, "a part of **MOD**, its Dense Predictor", "plus MOD's reconstruction loss"),
        (False, False, "trained **without** MOD", "focal + Dice (sigmoid) on the three regions"),
    ],
)
def test_an_ablation_is_told(
    on_data: dict[str, Any], tokenizer: bool, predictor: bool, method: str, loss: str
) -> None:
    on_data["settings"] |= {"use_tokenizer": tokenizer, "use_predictor": predictor}
    values = card_values(on_data, ROW)
    assert method in values["method_text"]
    assert loss in values["loss_text"]
    used = tokenizer or predictor
    assert ("MOD's" in values["loss_text"]) == used
    assert ("mask ratio 0.6" in values["configuration_text"]) == used
    assert ("without MOD" in metadata_values(on_data, ROW)["description"]) != used


def test_the_evaluation_that_the_bundle_can_do(
    on_sample: dict[str, Any], on_data: dict[str, Any]
) -> None:
    """Without a list of its cases, a bundle knows none that it was not trained on."""
    alone = "evaluate.json\n"
    assert alone in card_values(None, ROW)["evaluate_text"]
    assert alone in card_values(on_sample, ROW)["evaluate_text"]
    told = card_values(on_data, ROW)["evaluate_text"]
    assert alone not in told
    assert "does not tell which cases it was trained on" in told
    listed = card_values(on_data, ROW, with_datalist=True)
    assert "held-out cases" in listed["evaluate_text"]
    assert alone not in listed["evaluate_text"]
    assert "ids of the cases" in listed["weights_terms_text"]


def test_an_older_record_tells_less(on_data: dict[str, Any], tmp_path: Path) -> None:
    training = {"settings": {"bundle": "swinunetr_mod", "dataset_dir": "x"}, "epoch": 1}
    values = card_values(training, ROW) | metadata_values(training, ROW)
    assert "an unknown number of cases to train" in values["weights_text"]
    assert all(isinstance(value, (str, dict)) for value in values.values())


def all_words(training: dict[str, Any]) -> str:
    values = card_values(training, ROW) | metadata_values(training, ROW)
    return "\n".join(str(value) for value in values.values())


BRATS = {"dataset_dir": "BraTS2021", "training_cases": 1000, "epochs": 300}


def test_what_the_first_weights_were_trained_on_is_told(on_sample: dict[str, Any]) -> None:
    training = copy.deepcopy(on_sample)
    training["settings"]["pretrained"] = True
    training["history"] = [BRATS, {"dataset_dir": "clinic", "training_cases": 9, "epochs": None}]
    origin = (
        "the embedded sample of synthetic brains, computed by this project, from weights trained "
        "on the data set in the folder BraTS2021 (1000 cases, 300 epochs), then on the data set "
        "in the folder clinic (9 cases)"
    )
    values, metadata = card_values(training, ROW), metadata_values(training, ROW)
    assert values["weights_text"].startswith(f"**Fine-tuned on {origin}**: 12 cases to train")
    assert (
        f"Its weights were fine-tuned on {origin}: the terms of these data sets"
        in (values["weights_terms_text"])
    )
    assert metadata["data_source"] == origin[0].upper() + origin[1:]
    assert metadata["description"].endswith(f"Fine-tuned on {origin}.")
    words = all_words(training)
    for untrue in ("never seen", "sample alone", "was not trained on them", "Not for use on"):
        assert untrue not in words
    assert "may have been trained on some of them" in values["performance_text"]
    assert "says nothing about patients' scans" in values["performance_text"]


def test_fine_tuned_from_the_sample_to_the_sample(on_sample: dict[str, Any]) -> None:
    training = copy.deepcopy(on_sample)
    training["history"] = [{"dataset_dir": "embedded sample", "training_cases": 12, "epochs": 3}]
    assert "never seen a patient's scan" in card_values(training, ROW)["weights_text"]
    assert "Not for use on patients' scans" in metadata_values(training, ROW)["description"]


@pytest.mark.parametrize("history", [None, [], [{"dataset_dir": "unknown"}]])
def test_first_weights_of_unknown_origin(on_sample: dict[str, Any], history: Any) -> None:
    training = copy.deepcopy(on_sample)
    training["settings"]["pretrained"] = True
    if history is not None:
        training["history"] = history
    words = all_words(training)
    assert words.count("from weights trained on data of which nothing is recorded") == 4
    assert "never seen" not in words


def test_cases_that_another_program_listed(on_data: dict[str, Any]) -> None:
    on_data["settings"] |= {"dataset_dir": "listed cases", "fold": -1}
    text = card_values(on_data, ROW)["weights_text"]
    assert text.startswith("**Trained on cases listed by another program, such as MONAI Label (")
    assert "fold" not in text.replace("folder", "")


def test_figures_that_are_none_are_not_given(on_data: dict[str, Any]) -> None:
    on_data["metrics"] = {**METRICS, "val_dice_et": float("nan"), "val_hd95": float("inf")}
    assert "enhancing" not in card_values(on_data, ROW)["performance_text"]
    assert set(metadata_values(on_data, ROW)["eval_metrics"]) == {"mean_dice", "dice_tc", "dice_wt"}
    on_data["metrics"] = {"val_mean_dice": float("nan")}
    assert card_values(on_data, ROW)["performance_text"].startswith("Not measured")


def test_without_mod_nothing_of_it_is_said(on_data: dict[str, Any]) -> None:
    assert metadata_values(on_data, ROW)["metadata_name"] == "Swin UNETR with MOD"
    assert card_values(on_data, ROW)["mod_text"].startswith("\n- MOD reads the ")
    on_data["settings"] |= {"use_tokenizer": False, "use_predictor": False}
    assert metadata_values(on_data, ROW)["metadata_name"] == "Swin UNETR"
    assert ", trained without MOD. Trained on" in metadata_values(on_data, ROW)["description"]
    assert card_values(on_data, ROW)["mod_text"] == ""


def test_curves_are_shown_where_there_are_some(on_data: dict[str, Any]) -> None:
    assert "curves.png" not in all_words(on_data)
    text = card_values({**on_data, "curves": "curves.png"}, ROW)["performance_text"]
    assert "\n\n![Curves of the training, by epoch](curves.png)\n\n" in text
