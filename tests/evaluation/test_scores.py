"""All scores of a case: the columns, their order, and that the crop inside does not show."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from mod_components.data.layouts import REGIONS
from mod_components.evaluation.scores import METRICS, score_case
from mod_components.metrics import (
    dice,
    lesion_scores,
    precision,
    sensitivity,
    surface_scores,
    volume,
    volume_error,
)
from tests.metrics.shapes import SPACING, blobs_at_the_border, random_blobs

COLUMNS = [f"{metric.key}_{region}" for metric in METRICS for region in ("tc", "wt", "et")]


def test_the_metrics_and_their_order() -> None:
    assert [metric.key for metric in METRICS] == [
        *("dice", "hd95", "nsd", "sensitivity", "precision"),
        *("volume_truth", "volume_pred", "volume_error"),
        *("lesion_dice", "lesion_hd95", "lesions_truth", "lesions_found", "lesions_false"),
    ]
    units = {metric.key: metric.unit for metric in METRICS}
    assert (units["dice"], units["hd95"], units["volume_error"]) == ("", "mm", "mL")


@pytest.mark.parametrize("channel", [0, 6, 12])  # away from, at and across the border
def test_every_score_is_that_of_the_whole_volume(channel: int) -> None:
    masks, _ = blobs_at_the_border()
    pred, truth = masks[channel : channel + 3], masks[channel + 3 : channel + 6]
    scores = score_case(MetaTensor(pred.float()), MetaTensor(truth.float()), SPACING)
    distances, surfaces = surface_scores(pred, truth, SPACING)
    lesions = lesion_scores(pred, truth, SPACING)
    whole = [
        *(dice(pred, truth), distances, surfaces),
        *(sensitivity(pred, truth), precision(pred, truth)),
        *(volume(truth, SPACING), volume(pred, SPACING), volume_error(pred, truth, SPACING)),
    ]
    expected = [value for values in whole for value in values.tolist()]
    for key in ("dice", "hd95", "lesions", "found", "false"):
        expected += [getattr(lesion, key) for lesion in lesions]
    assert list(scores) == COLUMNS
    assert list(scores.values()) == expected
    assert all(type(value) is float for value in scores.values())


def test_only_sensitivity_and_precision_can_be_undefined() -> None:
    masks = random_blobs((9, 8, 7), 3)
    nothing = torch.zeros_like(masks)
    for pred, truth, undefined in (
        (masks, nothing, {"sensitivity"}),
        (nothing, masks, {"precision"}),
        (nothing, nothing, set()),
    ):
        scores = score_case(pred, truth)
        found = {name.rsplit("_", 1)[0] for name, value in scores.items() if math.isnan(value)}
        assert found == undefined
    assert scores["dice_et"] == scores["nsd_wt"] == scores["lesion_dice_tc"] == 1
    assert scores["hd95_et"] == scores["lesion_hd95_wt"] == scores["volume_pred_tc"] == 0


def test_a_wrong_number_of_regions_is_refused() -> None:
    masks = random_blobs((9, 8, 7), 2)
    with pytest.raises(ValueError, match=rf"\({len(REGIONS)}, D, H, W\)"):
        score_case(masks, masks)
