"""Pictures of validation cases: the files, the planes, and cases without a tumour."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import Tensor

from mod_components.handlers import preview
from mod_components.handlers.preview import Preview, draw_case

SHAPE = (24, 30, 20)


def case(name: str = "case_0", tumour: bool = True, spacing: float = 1.0) -> dict:
    """A brain that fills the middle, with a tumour in its left anterior upper part."""
    image = torch.zeros(4, *SHAPE)
    image[:, 4:20, 4:26, 3:17] = torch.rand(4, 16, 22, 14) + 0.5
    label = torch.zeros(3, *SHAPE)
    if tumour:
        label[1, 12:18, 5:13, 8:14] = 1
        label[0, 13:17, 6:12, 9:13] = 1
        label[2, 14:16, 7:11, 10:12] = 1
    affine = torch.diag(torch.tensor([-1.0, -1.0, spacing, 1.0]))
    return {
        "case": name,
        "image": MetaTensor(image, affine=affine),
        "label": MetaTensor(label, affine=affine),
    }


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
    image = case(tumour=tumour)
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
    validate(Preview(tmp_path), [case("BraTS_7"), case("BraTS_8")], epoch=12, empty=True)
    assert len(drawn) == 1
    text = drawn[0].get_suptitle()
    for part in ("BraTS_7", "epoch 12", "WT 0.000", "TC 0.000", "ET 0.000"):
        assert part in text
    labels = [entry.get_text() for entry in drawn[0].legends[0].get_texts()]
    assert labels == ["WT", "TC", "ET", "truth", "prediction"]


def test_a_case_is_chosen_by_its_id(tmp_path: Path, drawn: list[Figure]) -> None:
    validate(Preview(tmp_path, case="c"), [case(name) for name in "abcd"])
    assert len(drawn) == 1
    assert drawn[0].get_suptitle().startswith("c ")


def test_several_cases_have_their_ids_in_the_file_names(tmp_path: Path) -> None:
    validate(Preview(tmp_path, max_cases=2), [case("x/1"), case("y"), case("z")], epoch=1)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["epoch_0001_x_1.png", "epoch_0001_y.png"]


def test_every_validation_gives_a_picture(tmp_path: Path) -> None:
    handler = Preview(tmp_path)
    for epoch in (1, 2):
        validate(handler, [case()], epoch=epoch)
    assert len(list((tmp_path / "previews").iterdir())) == 2


def test_other_processes_draw_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview.idist, "get_rank", lambda: 1)
    validate(Preview(tmp_path), [case()])
    assert list(tmp_path.iterdir()) == []


def test_planes_are_the_right_way_up() -> None:
    # One bright voxel each in the left, anterior, superior corner of an LPS volume.
    volume = np.zeros(SHAPE)
    volume[-1, 0, -1] = 1
    top_right, top_left = (0, -1), (0, 0)
    assert preview._cut(volume, "axial", (0, 0, SHAPE[2] - 1))[top_right] == 1
    assert preview._cut(volume, "coronal", (0, 0, 0))[top_right] == 1
    assert preview._cut(volume, "sagittal", (SHAPE[0] - 1, 0, 0))[top_left] == 1


def test_planes_pass_through_the_tumour_in_true_proportions() -> None:
    made = case(spacing=2.0)
    figure = draw_case(made["image"], made["label"], made["label"])
    axial, coronal, sagittal = figure.axes[:3]
    assert [ax.get_aspect() for ax in (axial, coronal, sagittal)] == [1.0, 2.0, 2.0]
    volumes, truth = made["image"].numpy(), made["label"].numpy() > 0
    assert preview._centre(truth, volumes) == (14, 8, 10)
    assert preview._centre(truth & False, volumes) == (12, 14, 10)
    assert preview._centre(truth & False, volumes * 0) == (12, 15, 10)
    for axes in figure.axes[:6]:  # three regions, truth and prediction
        assert len(axes.collections) == 6
    dashed = [line.get_linestyle()[0][1] is not None for line in axial.collections]
    assert dashed == 3 * [False] + 3 * [True]


def test_the_scale_is_the_brains_not_the_backgrounds() -> None:
    volume = case()["image"][0].numpy() - 1.0  # z-scores: below 0 too
    volume[case()["image"][0].numpy() == 0] = 0
    grey = preview._window(volume)
    assert grey[volume == 0].max() == 0
    assert (grey.min(), grey.max()) == (0, 1)
    assert preview._window(volume * 0).max() == 0


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    good = case()
    with pytest.raises(ValueError, match=r"image must be \(4, D, H, W\)"):
        draw_case(good["image"][:1], good["label"], good["label"])
    with pytest.raises(ValueError, match="at least 1"):
        Preview(tmp_path, max_cases=0)
    with pytest.raises(TypeError, match="decollate=True"):
        validate(Preview(tmp_path), [good], decollate=False)


def test_pyplot_knows_of_no_figure(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    validate(Preview(tmp_path), [case()])
    assert pyplot.get_fignums() == []
