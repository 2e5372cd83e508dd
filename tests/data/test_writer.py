"""A label map is whole or not there, and the same as MONAI's."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import SaveImage

from mod_components.data import WholeNibabelWriter


def save(folder: Path, writer: type | None = None) -> Path:
    """A label map with an affine of its own, saved as evaluation does."""
    affine = torch.diag(torch.tensor([-2.0, -1.0, 3.0, 1.0]))
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, 6, 5, 4)))
    image = MetaTensor(labels, affine=affine, meta={"filename_or_obj": "A_t1ce.nii.gz"})
    SaveImage(
        folder, output_dtype=np.uint8, writer=writer, separate_folder=False, resample=False,
        output_postfix="seg", squeeze_end_dims=True, print_log=False,
    )(image)  # fmt: skip
    return folder / "A_t1ce_seg.nii.gz"


def test_the_file_is_that_of_monais_writer(tmp_path: Path) -> None:
    ours, theirs = (
        nibabel.load(save(tmp_path / name, writer))
        for name, writer in (("ours", WholeNibabelWriter), ("theirs", NibabelWriter))
    )
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
    assert ours.header == theirs.header
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["A_t1ce_seg.nii.gz"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save(tmp_path, WholeNibabelWriter).read_bytes()

    def cut(_image: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("monai.data.image_writer.nib.save", cut)
    with pytest.raises(RuntimeError, match=r"suitable writer for .*A_t1ce_seg\.nii\.gz"):
        save(tmp_path, WholeNibabelWriter)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "A_t1ce_seg.nii.gz": before
    }
