"""What MOD's handlers share; and the tiny network, data and trainer of the tests in this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
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
from mod_components.mod.step import as_plain_tensor, flat_parameters, linear_ramp, sample_keys

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
    tokenizer: Mapping[str, Any] | None = None,
    predictor: Mapping[str, Any] | None = None,
) -> dict[str, MODHandler]:
    """MOD's components at toy size, as a config would make them."""
    common: dict[str, Any] = {"weight": weight, "warmup_epochs": warmup_epochs}
    masked = MaskedViews(network, "encoder", ROI, **{"mask_cell": 4, **(views or {})})
    mod: dict[str, MODHandler] = {"views": masked}
    if use_tokenizer:
        teacher = EMATeacher(masked)
        heads = {"prototypes": 12, "class_prototypes": 6, "hidden": 16, "bottleneck": 8}
        mod["teacher"] = teacher
        mod["tokenizer"] = OnlineTokenizer(teacher, **{**common, **heads, **(tokenizer or {})})
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
        **settings,
    )


def state(**values: Any) -> SimpleNamespace:
    """Stands for an engine with this state."""
    return SimpleNamespace(state=SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("iteration", "epochs", "expected"),
    [(1, 2, 0.05), (10, 2, 0.5), (20, 2, 1.0), (21, 2, 1.0), (1, 0, 1.0), (1, 0.5, 0.2)],
)
def test_ramp_rises_linearly_over_the_first_epochs(
    iteration: int, epochs: float, expected: float
) -> None:
    engine = state(iteration=iteration, epoch_length=10)
    assert linear_ramp(engine, epochs) == pytest.approx(expected)


def test_keys_follow_the_case_and_not_its_place() -> None:
    one, two = sample_keys(state(batch={"case": ["a", "b"]}), 2)
    assert one != two
    assert sample_keys(state(batch={"case": ["b", "a"]}), 2) == [two, one]
    assert sample_keys(state(batch={"case": ["a"]}), 1) == [one]


def test_two_crops_of_a_case_have_keys_of_their_own() -> None:
    keys = sample_keys(state(batch={"case": ["a", "a", "b", "a"]}), 4)
    assert len(set(keys)) == 4
    assert sample_keys(state(batch={"case": ["b", "a", "a"]}), 3) == [keys[2], keys[0], keys[1]]


@pytest.mark.parametrize("batch", [{}, {"case": ["a"]}, {"case": "ab"}, [1, 2]])
def test_keys_without_usable_names_are_places(batch: Any) -> None:
    assert sample_keys(state(batch=batch), 2) == [0, 1]


def test_metadata_is_dropped() -> None:
    image = MetaTensor(torch.ones(1, 2), meta={"a": 1})
    plain = as_plain_tensor(image)
    assert type(plain) is Tensor
    assert plain.data_ptr() == image.data_ptr()
    assert as_plain_tensor(plain) is plain


def test_referred_modules_have_one_owner() -> None:
    network = ToyNetwork()
    mod = toy_components(network)
    own = {id(p) for p in network.parameters()}
    names = [(name, id(p)) for name, c in mod.items() for p in c.parameters()]
    assert len(names) == len({key for _, key in names})
    assert not own & {key for _, key in names}


def test_flat_parameters_are_unique_and_trainable() -> None:
    shared, frozen = nn.Linear(2, 3), nn.Linear(2, 2).requires_grad_(False)
    listed = flat_parameters([nn.Sequential(shared, frozen), shared])
    assert [id(p) for p in listed] == [id(shared.weight), id(shared.bias)]


def test_a_component_is_not_called() -> None:
    with pytest.raises(NotImplementedError, match="attach it"):
        toy_components(ToyNetwork())["views"](torch.zeros(1))
