"""Region scores through a real evaluator, from a config as the bundles write it."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import Tensor

from mod_components.metrics import HD95_MISSED, RegionDice, RegionHD95, dice, hd95
from tests.metrics.shapes import SPACING, random_blobs


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(ValueError, match="TC, WT, ET"):
        RegionDice(region="wt")


def cases() -> list[dict[str, Tensor]]:
    """Three cases whose image is the prediction; the last one has an empty ET on both sides."""
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    pred = random_blobs((8, 9, 7), 9).view(3, 3, 8, 9, 7).float()
    label = random_blobs((8, 9, 7), 12)[3:].view(3, 3, 8, 9, 7).float()
    pred[2, 2] = label[2, 2] = 0
    pred[1, 0] = 0
    return [
        {"image": MetaTensor(p, affine=affine), "label": MetaTensor(t, affine=affine)}
        for p, t in zip(pred, label, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("decollate", [True, False])
def test_an_evaluator_reports_the_means_and_every_case(batch_size: int, decollate: bool) -> None:
    data = cases()
    config = {
        "mean": {"_target_": "mod_components.metrics.RegionDice"},
        "others": {
            "dice_wt": {
                "_target_": "mod_components.metrics.RegionDice",
                "region": "WT",
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            },
            "hd95_tc": {"_target_": "mod_components.metrics.RegionHD95", "region": "TC"},
            "hd95": {"_target_": "mod_components.metrics.RegionHD95", "region": None},
        },
    }
    parser = ConfigParser(config, globals={"monai": "monai"})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
        network=torch.nn.Identity(),
        key_val_metric={"mean_dice": parser.get_parsed_content("mean")},
        additional_metrics=parser.get_parsed_content("others"),
        decollate=decollate,
    )
    for _ in range(2):  # a second validation starts from nothing
        evaluator.run()
    expected_dice = torch.stack([dice(case["image"], case["label"]) for case in data])
    expected_hd95 = torch.stack([hd95(case["image"], case["label"], SPACING) for case in data])
    metrics, details = evaluator.state.metrics, evaluator.state.metric_details
    assert evaluator.state.best_metric == metrics["mean_dice"]
    assert metrics["mean_dice"] == pytest.approx(expected_dice.mean().item())
    assert metrics["dice_wt"] == pytest.approx(expected_dice[:, 1].mean().item())
    assert metrics["hd95_tc"] == pytest.approx(expected_hd95[:, 0].mean().item())
    assert metrics["hd95"] == pytest.approx(expected_hd95.mean().item())
    assert expected_hd95[1, 0].item() == pytest.approx(HD95_MISSED)
    torch.testing.assert_close(details["mean_dice"], expected_dice)
    torch.testing.assert_close(details["dice_wt"], expected_dice[:, 1:2])
    torch.testing.assert_close(details["hd95"], expected_hd95)


def test_no_case_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no case"):
        RegionHD95().metric_fn.aggregate()
