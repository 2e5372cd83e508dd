"""Curves are read from what runs wrote, and drawn where a run has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mod_components.errors import DataError
from mod_components.evaluation.curves import plot_curves, read_curves


def write_run(folder: Path, train: str, validation: str = "") -> Path:
    folder.mkdir()
    (folder / "train.csv").write_text(train)
    if validation:
        (folder / "validation.csv").write_text(validation)
    return folder


def test_curves_of_two_runs(tmp_path: Path) -> None:
    mod = write_run(
        tmp_path / "mod",
        "epoch,loss,loss_seg,loss_token\n1,2.5,1.5,6.2\n2,2.0,1.25,\n",
        "epoch,val_mean_dice\n2,0.5\n",
    )
    plain = write_run(tmp_path / "plain", "epoch,loss,loss_seg\n1,1.75,1.75\n")
    curves = plot_curves({"MOD": mod, "plain": plain}, tmp_path / "new" / "curves.png")
    assert curves["MOD"] == {
        "segmentation loss": [(1, 1.5), (2, 1.25)],
        "mean Dice on the validation cases": [(2, 0.5)],
        "token loss (nats)": [(1, 6.2)],
    }
    assert curves["plain"] == {"segmentation loss": [(1, 1.75)]}
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_curves_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train.csv: give the output_dir"):
        read_curves(tmp_path)


def test_no_run_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run to draw"):
        plot_curves({}, tmp_path / "curves.png")
