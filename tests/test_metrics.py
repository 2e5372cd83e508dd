"""Dice and HD95 against plain loops, against MONAI, and through a real evaluator."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.metrics import compute_hausdorff_distance
from torch import Tensor

from mod_components.metrics import HD95_MISSED, RegionDice, RegionHD95, dice, hd95, spacing_of

SPACING = (0.7, 1.0, 3.0)


def box(shape: tuple[int, int, int], start: tuple[int, ...], stop: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def naive_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels with at least one of six neighbours outside, in mm, (n, 3)."""
    points = []
    for voxel in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = list(voxel)
            other[axis] += step
            inside = all(0 <= o < s for o, s in zip(other, mask.shape, strict=True))
            if not inside or not mask[tuple(other)]:
                points.append(np.array(voxel) * spacing)
                break
    return np.array(points)


def naive_hd95(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> float:
    a, b = naive_surface(pred, spacing), naive_surface(truth, spacing)
    there = [min(np.linalg.norm(q - p) for q in b) for p in a]
    back = [min(np.linalg.norm(q - p) for q in a) for p in b]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def random_blobs(shape: tuple[int, int, int], count: int) -> Tensor:
    """Masks (count, D, H, W) of a few random boxes each."""
    rng = np.random.default_rng(3)
    masks = torch.zeros(count, *shape, dtype=torch.bool)
    for mask in masks:
        for _ in range(3):
            start = [int(rng.integers(0, s - 2)) for s in shape]
            stop = [int(rng.integers(a + 1, s + 1)) for a, s in zip(start, shape, strict=True)]
            mask |= box(shape, tuple(start), tuple(stop))
    return masks


def test_dice_is_the_plain_formula() -> None:
    pred, truth = random_blobs((9, 8, 7), 6).chunk(2)
    expected = [
        2 * np.logical_and(p, t).sum() / (p.sum() + t.sum())
        for p, t in zip(pred.numpy(), truth.numpy(), strict=True)
    ]
    torch.testing.assert_close(dice(pred, truth), torch.tensor(expected, dtype=torch.float32))


def test_hd95_is_the_brute_force_distance_in_mm() -> None:
    pred, truth = random_blobs((8, 9, 7), 8).chunk(2)
    expected = [naive_hd95(p, t, SPACING) for p, t in zip(pred.numpy(), truth.numpy(), strict=True)]
    torch.testing.assert_close(
        hd95(pred, truth, SPACING), torch.tensor(expected, dtype=torch.float32)
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_hd95_is_monais_wherever_monais_is_defined(spacing: tuple[float, float, float]) -> None:
    # Far from, at and across the border: the crop must not show.
    small = random_blobs((12, 10, 8), 6)
    masks = torch.zeros(18, 30, 24, 20, dtype=torch.bool)
    masks[:6, 9:21, 7:17, 6:14] = small
    masks[6:12, :12, :10, :8] = small
    masks[12:, -12:, -10:, -8:] = small
    pred, truth = masks, masks.roll(5, dims=0)
    monai = compute_hausdorff_distance(
        pred[None].float(),
        truth[None].float(),
        include_background=True,
        percentile=95,
        spacing=list(spacing),
    )[0]
    torch.testing.assert_close(hd95(pred, truth, spacing), monai, rtol=0, atol=1e-6)


def test_hd95_of_single_voxels_in_opposite_corners() -> None:
    pred = box((6, 6, 6), (0, 0, 0), (1, 1, 1))[None]
    truth = box((6, 6, 6), (5, 5, 5), (6, 6, 6))[None]
    assert hd95(pred, truth, (1.0, 2.0, 3.0)).item() == pytest.approx(5 * 14**0.5, rel=1e-6)


def test_empty_masks_follow_the_brats_convention() -> None:
    empty = torch.zeros(4, 5, 5)
    full = torch.ones(4, 5, 5)
    pred = torch.stack([empty, full, empty, full])
    truth = torch.stack([empty, empty, full, full])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dice(pred, truth).tolist() == [1.0, 0.0, 0.0, 1.0]
        distances = hd95(pred, truth, SPACING)
    torch.testing.assert_close(distances, torch.tensor([0.0, HD95_MISSED, HD95_MISSED, 0.0]))


@pytest.mark.parametrize("score", [dice, hd95])
def test_wrong_masks_are_refused(score: object) -> None:
    good = torch.zeros(3, 4, 4, 4)
    assert callable(score)
    with pytest.raises(ValueError, match=r"\(C, D, H, W\)"):
        score(good, good[:2])
    with pytest.raises(ValueError, match="post-processing"):
        score(good + 0.3, good)
    with pytest.raises(ValueError, match="truth must hold 0 and 1"):
        score(good, good.int() + 4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)])
def test_wrong_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three positive"):
        hd95(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), spacing)


def test_spacing_comes_from_the_first_image_that_has_one() -> None:
    plain = torch.zeros(1, 2, 2, 2)
    image = MetaTensor(plain, affine=torch.diag(torch.tensor([-0.7, -1.0, 3.0, 1.0])))
    assert spacing_of(plain, image) == pytest.approx(SPACING)
    assert spacing_of(plain) == (1.0, 1.0, 1.0)


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
