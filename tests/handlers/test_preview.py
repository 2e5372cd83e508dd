"""Pictures of validation cases: which ones, their files and titles."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor

from mod_components.handlers import preview
from mod_components.handlers.preview import Preview
from tests.evaluation.cases import brain


class Guess(torch.nn.Module):
    """Predicts nothing, or a box that is off by a voxel."""

    def __init__(self, empty: bool) -> None:
        super().__init__()
        self.empty = empty

    def forward(self, image: Tensor) -> Tensor:
        pred = image[:, :3] * 0
        if not self.empty:
            pred[:, :, 13:19, 6:13, 9:14] = 1
        return pred


def validate(
    handler: Preview, data: list[dict], epoch: int = 3, empty: bool = False, decollate: bool = True
) -> None:
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=Guess(empty),
        val_handlers=[handler],
        decollate=decollate,
    ).run(epoch)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that the handler draws."""
    figures: list[Figure] = []
    real = preview.draw_case

    def spy(*args: Tensor, title: str) -> Figure:
        figures.append(real(*args, title=title))
        return figures[-1]

    monkeypatch.setattr(preview, "draw_case", spy)
    return figures


@pytest.mark.parametrize("tumour", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_a_picture_without_warnings(tmp_path: Path, tumour: bool, empty: bool) -> None:
    image = brain(tumour=tumour)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # not ours: MONAI, torch
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        validate(Preview(tmp_path), [image], empty=empty)
    picture = imread(tmp_path / "previews" / "epoch_0003.png")
    assert picture.shape[0] > 500
    assert np.all(picture[:5, :5, :3] == 0)  # black outside
    assert picture[..., :3].max() == 1
    colourful = np.ptp(picture[100:-60, :, :3], axis=2).max() > 0.5  # outlines, not the legend
    assert colourful == (tumour or not empty)
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["epoch_0003.png"]


def test_the_title_says_which_case_and_how_good(tmp_path: Path, drawn: list[Figure]) -> None:
    validate(Preview(tmp_path), [brain("BraTS_7"), brain("BraTS_8")], epoch=12, empty=True)
    assert len(drawn) == 1
    text = drawn[0].get_suptitle()
    for part in ("BraTS_7", "epoch 12", "WT 0.000", "TC 0.000", "ET 0.000"):
        assert part in text
    labels = [entry.get_text() for entry in drawn[0].legends[0].get_texts()]
    assert labels == ["WT", "TC", "ET", "truth", "prediction", "both"]


def test_a_case_is_chosen_by_its_id(tmp_path: Path, drawn: list[Figure]) -> None:
    validate(Preview(tmp_path, case="c"), [brain(name) for name in "abcd"])
    assert len(drawn) == 1
    assert drawn[0].get_suptitle().startswith("c ")


def test_several_cases_have_their_ids_in_the_file_names(tmp_path: Path) -> None:
    validate(Preview(tmp_path, max_cases=2), [brain("x/1"), brain("y"), brain("z")], epoch=1)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["epoch_0001_x_1.png", "epoch_0001_y.png"]


def test_every_validation_gives_a_picture(tmp_path: Path) -> None:
    handler = Preview(tmp_path)
    for epoch in (1, 2):
        validate(handler, [brain()], epoch=epoch)
    assert len(list((tmp_path / "previews").iterdir())) == 2


def test_other_processes_draw_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview.idist, "get_rank", lambda: 1)
    validate(Preview(tmp_path), [brain()])
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    good = brain()
    with pytest.raises(ValueError, match="at least 1"):
        Preview(tmp_path, max_cases=0)
    with pytest.raises(TypeError, match="decollate=True"):
        validate(Preview(tmp_path), [good], decollate=False)
