"""Pictures of a case: the planes, what is drawn where, and orientations."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor
from PIL import Image

from mod_components.evaluation.pictures import draw_case, picture_bytes, to_lps
from mod_components.metrics import dice, hd95
from tests.evaluation.cases import brain


def legend(figure: Figure) -> list[str]:
    return [entry.get_text() for each in figure.legends for entry in each.get_texts()]


def test_true_proportions_with_three_regions_twice() -> None:
    made = brain(spacing=2.0)
    figure = draw_case(made["image"], made["label"], made["label"])
    axial, coronal, sagittal = figure.axes[:3]
    assert [ax.get_aspect() for ax in (axial, coronal, sagittal)] == [1.0, 2.0, 2.0]
    for axes in figure.axes:
        assert len(axes.collections) == 3 + 2 * 3  # a prediction has dashes in two colours
    dashed = [line.get_linestyle()[0][1] is not None for line in axial.collections]
    assert dashed == 3 * [False] + 6 * [True]


@pytest.mark.parametrize("size", [(12, 12, 1), (12, 1, 12), (1, 12, 12)])
def test_a_scan_of_one_slice(size: tuple[int, int, int]) -> None:
    image = MetaTensor(torch.rand(4, *size))
    mask = MetaTensor(torch.zeros(3, *size))
    mask[:, : (size[0] + 1) // 2, : (size[1] + 1) // 2, : (size[2] + 1) // 2] = 1
    figure = draw_case(image, mask, mask, title="flat")
    assert picture_bytes(figure)
    assert sum(bool(axes.collections) for axes in figure.axes) > 0  # the plane that is one


@pytest.mark.parametrize("with_pred", [True, False])
@pytest.mark.parametrize("with_label", [True, False])
def test_what_is_there_is_drawn_and_said(with_pred: bool, with_label: bool) -> None:
    made = brain()
    pred = made["label"].roll(1, 1) if with_pred else None
    label = made["label"] if with_label else None
    figure = draw_case(made["image"], pred, label, title="a", distances=True)
    text = figure.get_suptitle().splitlines()
    assert text[0] == "a"
    if pred is not None and label is not None:
        tc, wt, et = dice(pred, label).tolist()
        assert text[1] == f"Dice   WT {wt:.3f}   TC {tc:.3f}   ET {et:.3f}"
        tc, wt, et = hd95(pred, label).tolist()
        assert text[2] == f"HD95 (mm)   WT {wt:.1f}   TC {tc:.1f}   ET {et:.1f}"
    else:
        assert len(text) == 1
    drawn = ["truth"] * with_label + ["prediction"] * with_pred + ["both"] * (len(text) == 3)
    assert legend(figure) == (["WT", "TC", "ET", *drawn] if drawn else [])
    lines = 3 * with_label + 6 * with_pred
    assert all(len(axes.collections) == lines for axes in figure.axes)


@pytest.mark.parametrize("dpi", [100, 110])  # of the report, and of other pictures
def test_agreement_looks_neither_like_truth_nor_like_prediction(dpi: int) -> None:
    made = brain()
    label = made["label"]

    def coloured(*masks: torch.Tensor | None) -> np.ndarray:
        """Which pixels of the planes are as colourful as an outline."""
        data = picture_bytes(draw_case(made["image"], *masks, channels=("T1",)), dpi=dpi)
        return np.ptp(imread(io.BytesIO(data))[:-60, :, :3], axis=2) > 0.4

    truth, both, pred = (coloured(*m) for m in ((None, label), (label, label), (label, None)))
    # The captions differ in height: the planes stand at the bottom.
    height = min(map(len, (truth, both, pred)))
    truth, both, pred = (mask[-height:] for mask in (truth, both, pred))
    assert (truth & ~both).sum() > 0.1 * truth.sum()  # dark dashes on the line
    assert (both & ~truth).sum() < 0.05 * truth.sum()  # and nothing beside it
    assert both.sum() > 1.2 * pred.sum()  # it goes on where dashes end


def unseen(pred: torch.Tensor, label: torch.Tensor, spacing: float = 1.0) -> list[str]:
    """The caption's lines behind the Dice."""
    image = brain(spacing=spacing)["image"]
    masks = (MetaTensor(mask, affine=image.affine) for mask in (pred, label))
    return draw_case(image, *masks, title="a").get_suptitle().splitlines()[2:]


def test_the_caption_says_what_no_plane_shows() -> None:
    label = brain()["label"].as_tensor()  # planes at 15, 9 and 11
    assert unseen(label, label) == []
    false = label.clone()
    false[1, 4:8, 20:25, 3:8] = 1  # 4 × 5 × 5 voxels away from all planes
    assert unseen(false, label) == ["False parts outside these planes: 1, the largest 0.10 mL"]
    false[2, 5, 16, 15] = 1
    assert unseen(false, label, 2.5) == ["False parts outside these planes: 2, the largest 0.25 mL"]
    small = label.clone()
    small[0, 5, 16, 15] = 1
    assert unseen(small, label) == [
        "False parts outside these planes: 1, the largest under 0.01 mL"
    ]
    assert unseen(label, false) == ["Missed parts outside these planes: 1, the largest 0.10 mL"]
    assert unseen(label, small) == []  # too small for a lesion
    assert unseen(false, false) == []
    # what a plane cuts can be seen, what touches the truth is not apart
    cut, grown = label.clone(), label.clone()
    cut[1, 4:8, 20:25, 11:13] = 1
    grown[1, 17:20, 5:13, 3:9] = 1
    assert unseen(cut, label) == unseen(grown, label) == []
    assert unseen(label * 0, label) == []  # nothing is drawn there, and the truth is in the planes


def test_four_images_stand_in_columns() -> None:
    made = brain()
    names = ("T2", "FLAIR", "T1ce", "T1")
    for channel in range(4):
        made["image"][channel] *= 10.0 ** (channel % 2)
        made["image"][channel, 10 + channel, 15, 10] = 99.0
    figure = draw_case(made["image"], None, made["label"], channels=names)
    assert len(figure.axes) == 12
    assert [axes.get_title() for axes in figure.axes[:4]] == list(names)
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["axial", "coronal", "sagittal"]
    figure.canvas.draw()  # places the planes
    for row in range(3):
        shown = [axes.get_images()[0].get_array() for axes in figure.axes[4 * row : 4 * row + 4]]
        assert len({image.shape for image in shown}) == 1
        assert not np.array_equal(shown[0], shown[1])
    boxes = [axes.get_position() for axes in figure.axes]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = (one.x1 <= other.x0, other.x1 <= one.x0, one.y1 <= other.y0, other.y1 <= one.y0)
            assert any(apart)


@pytest.mark.parametrize("channels", [("FLAIR",), ("FLAIR", "T1ce"), ("T1", "T2", "T1ce")])
def test_one_scale_for_all_planes(channels: tuple[str, ...]) -> None:
    made = brain(spacing=3.0)
    figure = draw_case(made["image"], None, made["label"], channels=channels)
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    scales = []
    for axes in figure.axes:
        box, aspect = axes.get_position(), axes.get_aspect()
        rows, columns = axes.get_images()[0].get_array().shape
        scales += [box.width * width / columns, box.height * height / (rows * aspect)]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=1e-6)


@pytest.mark.parametrize("tumour", [True, False])
def test_no_warnings_and_a_black_page(tumour: bool) -> None:
    made = brain("costs $1 or $2", tumour=tumour)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # not ours: MONAI, torch
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        figure = draw_case(made["image"], made["label"], made["label"], title="costs $1 or $2")
        data = picture_bytes(figure)
    picture = imread(io.BytesIO(data))
    assert picture.shape[0] > 500
    assert np.all(picture[:5, :5, :3] == 0)
    assert picture[..., :3].max() == 1
    # Outlines between the caption and the legend are all that has a colour.
    assert (np.ptp(picture[100:-60, :, :3], axis=2).max() > 0.5) == tumour


def test_kinds_of_files() -> None:
    made = brain()
    figure = draw_case(made["image"], None, made["label"])
    png, small = picture_bytes(figure), picture_bytes(figure, dpi=55)
    jpeg = picture_bytes(figure, "jpeg")
    assert png.startswith(b"\x89PNG")
    assert jpeg.startswith(b"\xff\xd8\xff")
    width, height = Image.open(io.BytesIO(png)).size
    assert Image.open(io.BytesIO(jpeg)).size == (width, height)
    assert Image.open(io.BytesIO(small)).size == pytest.approx((width / 2, height / 2), abs=1)


def test_orientations_become_one() -> None:
    voxels = torch.rand(3, 4, 5, 6)
    ras = MetaTensor(voxels, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    turned = to_lps(ras)
    assert torch.equal(turned.as_tensor(), voxels.flip(1, 2))  # left and posterior come last
    assert turned.affine.diag().tolist() == [-2, -3, 4, 1]
    assert torch.equal(ras.as_tensor(), voxels)
    assert ras.applied_operations == []
    assert torch.equal(to_lps(turned).as_tensor(), turned.as_tensor())
    sar = MetaTensor(  # axes to superior, anterior, right
        voxels.permute(0, 3, 2, 1), affine=ras.affine[:, [2, 1, 0, 3]]
    )
    assert torch.equal(to_lps(sar).as_tensor(), turned.as_tensor())
    assert to_lps(voxels) is voxels


def test_what_does_not_fit_is_named() -> None:
    good = brain()
    with pytest.raises(ValueError, match=r"image must be \(4, D, H, W\)"):
        draw_case(good["image"][:1], good["label"], good["label"])
    with pytest.raises(ValueError, match=r"pred must be \(3, D, H, W\) on the grid of the image"):
        draw_case(good["image"], good["label"][:, 1:], good["label"])
    with pytest.raises(ValueError, match=r"label must be \(3, D, H, W\)"):
        draw_case(good["image"], None, good["label"][:1])
    with pytest.raises(ValueError, match="channels must be among T1ce, T1, T2, FLAIR"):
        draw_case(good["image"], channels=("t1gd",))


def test_pyplot_knows_of_no_figure() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    draw_case(brain()["image"])
    assert pyplot.get_fignums() == []
