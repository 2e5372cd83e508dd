"""A batch with unlabelled crops is the sum of two batches: one segmented, both seen by MOD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mod_components.mod import MaskedViews
from tests.toys import ROI, ToyNetwork, toy_components, toy_data, toy_trainer

TERMS = ("loss_token", "loss_class", "loss_recon")


def step(
    data: Sequence[dict[str, Any]], *, segment: bool = True, use_mod: bool = True
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss terms and gradients of one step on all of ``data``, always from the same start."""
    torch.manual_seed(5)
    network = ToyNetwork()
    mod = toy_components(network, warmup_epochs=0)
    loss = nn.BCEWithLogitsLoss() if segment else lambda pred, label: 0 * pred.sum()
    found: dict[str, Tensor] = {}

    def keep(engine: SupervisedTrainer) -> None:
        modules = {"network": network, **(mod if use_mod else {})}
        for name, module in modules.items():
            for parameter_name, parameter in module.named_parameters():
                gradient = parameter.grad
                if gradient is not None:
                    found[f"{name}.{parameter_name}"] = gradient.clone()

    trainer = toy_trainer(
        network,
        mod if use_mod else None,
        data=data,
        batch_size=len(data),
        loss_function=loss,
    )
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, keep)
    trainer.run()
    terms = {k: float(v) for k, v in trainer.state.output.items() if k.startswith("loss")}
    return terms, found


@pytest.fixture
def fixed_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views and masks that depend on the image alone, as keys differ between the batches."""

    def draw(_self: MaskedViews, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        masks = torch.zeros(2, len(x), 1, *ROI)
        masks[0, ..., :8], masks[1, ..., 4:] = 1, 1
        return torch.cat([1.1 * x, 0.9 * x]), masks.flatten(0, 1)

    monkeypatch.setattr(MaskedViews, "draw", draw)


def mixed(
    labelled: Sequence[dict[str, Any]], unlabelled: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each labelled item with its share of the unlabelled ones, as WithUnlabelled gives them."""
    ratio = len(unlabelled) // len(labelled)
    items = []
    for index, item in enumerate(labelled):
        own = range(index * ratio, (index + 1) * ratio)
        images = torch.stack([unlabelled[i]["image"] for i in own])
        items.append({**item, "unlabelled": images, "unlabelled_key": torch.tensor(list(own))})
    return items


@pytest.mark.usefixtures("fixed_views")
@pytest.mark.parametrize("ratio", [1, 2])
def test_a_mixed_batch_is_two_separate_ones(ratio: int) -> None:
    data = toy_data(2 + 2 * ratio)
    labelled, unlabelled = data[:2], data[2:]
    terms, gradients = step(mixed(labelled, unlabelled))

    segmented, from_segmentation = step(labelled, use_mod=False)
    first, from_labelled = step(labelled, segment=False)
    second, from_unlabelled = step(unlabelled, segment=False)
    assert terms["loss_seg"] == pytest.approx(segmented["loss_seg"], rel=1e-6)
    share = 1 / (1 + ratio)  # MOD's losses are means over all crops
    for term in TERMS:
        both = share * first[term] + (1 - share) * second[term]
        assert terms[term] == pytest.approx(both, rel=1e-5), term
    assert set(gradients) == set(from_labelled)
    for name, gradient in gradients.items():
        expected = share * from_labelled[name] + (1 - share) * from_unlabelled[name]
        if name in from_segmentation:
            expected = expected + from_segmentation[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert gradients["network.encoder.0.weight"].abs().max() > 0


@pytest.mark.usefixtures("fixed_views")
def test_unlabelled_crops_reach_the_decoder_and_the_segmentation_loss_not_at_all() -> None:
    data = toy_data(4)
    plain, gradients = step(data[:2])
    other, mixed_gradients = step(mixed(data[:2], data[2:]))
    assert other["loss_seg"] == pytest.approx(plain["loss_seg"], rel=1e-6)
    for name in ("network.decoder.weight", "network.decoder.bias"):
        torch.testing.assert_close(mixed_gradients[name], gradients[name])
    assert other["loss_recon"] != pytest.approx(plain["loss_recon"], rel=1e-3)


def test_draws_of_labelled_crops_do_not_change_and_those_of_two_crops_of_a_case_differ() -> None:
    network = ToyNetwork()
    views = MaskedViews(network, "encoder", ROI, mask_cell=4)
    kept: list[Tensor] = []

    def masks(data: Sequence[dict[str, Any]]) -> Tensor:
        trainer = toy_trainer(network, {"views": views}, data=data)
        trainer.add_event_handler(
            IterationEvents.FORWARD_COMPLETED,
            lambda engine: kept.append(engine.state.mod.masks.clone()),
        )
        trainer.run()
        return kept.pop()

    data = toy_data(2)
    plain = masks(data)  # (2 views x 2, 1, D, H, W)
    item = {"unlabelled": data[0]["image"][None], "unlabelled_key": torch.tensor([77])}
    both = masks([{**case, **item} for case in data])  # (2 views x 4, 1, D, H, W)
    torch.testing.assert_close(both[[0, 1, 4, 5]], plain)
    assert not torch.equal(both[2], both[3])  # one case twice
    assert not torch.equal(both[2], both[0])
