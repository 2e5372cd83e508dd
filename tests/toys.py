"""A tiny network with its data, MOD components and trainer, shared by the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from mod_components.mod import (
    Attach,
    DensePredictor,
    EMATeacher,
    MaskedViews,
    MODHandler,
    OnlineTokenizer,
    parameter_groups,
)

ROI = (16, 16, 16)


class ToyNetwork(nn.Module):
    """Encoder of stride 4 (its feature is what is tapped) and a decoder, for images of 16³."""

    def __init__(self, width: int = 8, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm3d(width) if batch_norm else nn.GroupNorm(2, width)
        self.stem = nn.Sequential(nn.Conv3d(4, width, 4, stride=4), norm, nn.GELU())
        self.encoder = nn.Sequential(nn.Conv3d(width, width, 1), nn.Dropout(dropout))
        self.decoder = nn.ConvTranspose3d(width, 3, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(self.stem(x)))


def toy_data(cases: int = 4) -> list[dict[str, Any]]:
    """Cases with an image (4, 16³) whose outer two voxels are background, and regions (3, 16³)."""
    generator = torch.Generator().manual_seed(11)
    brain = torch.zeros(1, *ROI)
    brain[:, 2:-2, 2:-2, 2:-2] = 1
    data = []
    for case in range(cases):
        image = torch.randn(4, *ROI, generator=generator) * brain
        label = (torch.rand(3, *ROI, generator=generator) < 0.3).float()
        data.append({"case": f"case_{case}", "image": image, "label": label})
    return data


def toy_components(
    network: nn.Module,
    *,
    use_tokenizer: bool = True,
    use_predictor: bool = True,
    warmup_epochs: float = 2,
    weight: float = 1.0,
    views: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    predictor: Mapping[str, Any] | None = None,
) -> dict[str, MODHandler]:
    """MOD's components at toy size, as a config would make them."""
    common: dict[str, Any] = {"weight": weight, "warmup_epochs": warmup_epochs}
    masked = MaskedViews(network, "encoder", ROI, **{"mask_cell": 4, **(views or {})})
    mod: dict[str, MODHandler] = {"views": masked}
    if use_tokenizer:
        copies = EMATeacher(masked, **(teacher or {}))
        heads = {"prototypes": 12, "class_prototypes": 6, "hidden": 16, "bottleneck": 8}
        mod["teacher"] = copies
        mod["tokenizer"] = OnlineTokenizer(copies, **{**common, **heads, **(tokenizer or {})})
    if use_predictor:
        mod["predictor"] = DensePredictor(masked, **{**common, **(predictor or {})})
    return mod


def toy_trainer(
    network: nn.Module,
    mod: Mapping[str, MODHandler] | None,
    *,
    data: Sequence[Any] | None = None,
    epochs: int = 1,
    handlers: Sequence[Any] = (),
    attach: bool = True,
    batch_size: int = 2,
    **settings: Any,
) -> SupervisedTrainer:
    """MONAI's trainer on toy data, with MOD's components attached as a bundle does."""
    data = toy_data() if data is None else data
    groups = parameter_groups(network, mod, 0.05)
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(data), batch_size=batch_size),
        network=network,
        optimizer=settings.pop("optimizer", None) or torch.optim.AdamW(groups, lr=1e-2),
        loss_function=settings.pop("loss_function", nn.BCEWithLogitsLoss()),
        train_handlers=[*([Attach(mod)] if attach else []), *handlers],
        decollate=False,
        optim_set_to_none=True,
        **settings,
    )
