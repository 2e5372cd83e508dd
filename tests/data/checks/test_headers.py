"""The cheap checks: every kind of bad header or label map is named, with case and mend."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import NibabelReader
from monai.transforms import LoadImaged

from mod_components.data import DataError, Problem, check_cases, find_layout, refuse_bad_cases, scan
from mod_components.data.checks.volume import Volume
from tests.data.checks.spoil import set_header
from tests.data.folders import (
    NEW,
    OLD,
    SHAPE,
    label_map,
    write_case,
    write_cases,
    write_task01,
    write_volume,
)


def check(root: Path, *, full: bool = False) -> list[Problem]:
    return check_cases(scan(root), find_layout(root), full=full)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def write_mgh(path: Path) -> None:
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), path.with_suffix(".mgz"))
    path.with_suffix(".mgz").rename(path)


def with_nan(path: Path) -> None:
    voxels = label_map((1, 2, 4)).astype(np.float32)
    voxels[5, 4, 3] = np.nan
    write_volume(path, voxels)


# file of case "Bad", what is done to it, the message and the mend
BAD_FILES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("t1", lambda p: p.write_bytes(b""), "the file is empty", "copy or download it again"),
    ("t1", lambda p: p.write_bytes(b"garbage"), "not a readable NIfTI", "copy or download"),
    ("t1", lambda p: p.write_bytes(gzip.compress(b"x" * 99)), "not a readable NIfTI", "copy or"),
    ("t1", lambda p: truncate(p, 40), "not a readable NIfTI", "copy or download it again"),
    ("t1", write_mgh, "not a", "copy or download it again"),
    ("seg", lambda p: p.write_bytes(b""), "the file is empty", "copy or download it again"),
    (
        "t2",
        lambda p: write_volume(p, np.zeros((6, 5, 3), np.int16)),
        r"shape \(6, 5, 3\), but Bad_t1ce.nii.gz has \(6, 5, 4\)",
        "one grid",
    ),
    (
        "t1ce",
        lambda p: write_volume(p, np.zeros((6, 5, 3), np.int16)),
        r"shape \(6, 5, 3\), but Bad_t1.nii.gz has \(6, 5, 4\)",
        "one grid",
    ),
    (
        "seg",
        lambda p: write_volume(p, np.zeros((5, 5, 4), np.uint8) + 1),
        r"shape \(5, 5, 4\), but Bad_t1ce",
        "one grid",
    ),
    (
        "flair",
        lambda p: write_volume(p, np.zeros((*SHAPE, 2), np.int16)),
        r"expected a 3D volume, found shape \(6, 5, 4, 2\)",
        "one 3D volume a file",
    ),
    (
        "flair",
        lambda p: write_volume(p, np.zeros((*SHAPE, 1), np.int16)),
        r"expected a 3D volume, found shape \(6, 5, 4, 1\)",
        r"remove the fourth axis \(numpy.squeeze\)",
    ),
    (
        "seg",
        lambda p: write_volume(p, label_map((1, 2, 4))[..., None]),
        r"expected a 3D volume, found shape \(6, 5, 4, 1\)",
        r"remove the fourth axis \(numpy.squeeze\)",
    ),
    (
        "seg",
        lambda p: write_volume(p, label_map((1, 2, 3))),
        r"label code 3 is not one of 0 \(background\), necrosis 1, oedema 2, enhancing 4",
        "3 is enhancing tumour from BraTS 2023 on: .* write 4 for 3",
    ),
    ("seg", lambda p: write_volume(p, label_map((1, 9))), "label code 9 is not", "correct the"),
    ("seg", lambda p: write_volume(p, label_map((1, 1.5))), "label code 1.5", "nearest neigh"),
    ("seg", with_nan, "the label map has non-finite values", "download it again"),
]


@pytest.mark.parametrize(("suffix", "spoil", "message", "mend"), BAD_FILES)
def test_bad_file(
    tmp_path: Path, suffix: str, spoil: Callable[[Path], object], message: str, mend: str
) -> None:
    write_cases(tmp_path, 2)
    path = write_case(tmp_path / "Bad", "Bad") / f"Bad_{suffix}.nii.gz"
    spoil(path)
    (problem,) = check(tmp_path)
    assert (problem.case, problem.file, problem.severity) == ("Bad", str(path), "error")
    with pytest.raises(DataError, match=rf"(?s)1 of 3 cases.*Bad: .*{message}.*\(.*{mend}"):
        refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))


def test_good_cases(tmp_path: Path) -> None:
    write_cases(tmp_path, 3)
    write_case(tmp_path / "Unread", "Unread", codes=None)
    write_case(tmp_path / "Plain", "Plain", extension=".nii")
    assert check(tmp_path) == []
    assert refuse_bad_cases(scan(tmp_path), find_layout(tmp_path)) == []


def test_a_label_without_tumour_is_a_warning_and_without_enhancing_tumour_is_none(
    tmp_path: Path,
) -> None:
    write_case(tmp_path / "A", "A", codes=(1, 2))
    folder = write_case(tmp_path / "B", "B", codes=())
    (problem,) = check(tmp_path)
    assert (problem.kind, problem.severity) == ("empty-label", "warning")
    assert problem.file == str(folder / "B_seg.nii.gz")


def test_missing_modality(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Bad", "Bad")
    (folder / "Bad_t1ce.nii.gz").unlink()
    (folder / "Bad_flair.nii.gz").unlink()
    (problem,) = check(tmp_path)
    assert str(problem) == (
        f"Bad: {folder}: no file for T1ce, FLAIR (add the file, or remove the case)"
    )


def test_affines_that_the_reader_cannot_stack_are_an_error(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    shifted = np.eye(4)
    shifted[0, 3] = 1e-4
    write_volume(folder / "Odd_t2.nii.gz", np.zeros(SHAPE, np.int16), shifted)
    write_volume(folder / "Odd_t1.nii.gz", np.zeros(SHAPE, np.int16), np.eye(4) * (1 + 1e-6))
    with pytest.raises(DataError, match=r"Odd_t2.nii.gz: affine differs .* by up to 0.0001 mm"):
        refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))
    reader = NibabelReader()  # what the rule stands for
    with pytest.raises(RuntimeError, match="affine matrix of all images should be the same"):
        reader.get_data(reader.read([folder / f"Odd_{name}.nii.gz" for name in ("t1ce", "t2")]))


def test_images_are_compared_with_the_first_as_the_reader_does(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    for name, millimetres in zip(OLD, (0.0, 0.0009, 0.0009, 0.0018), strict=True):
        affine = np.eye(4)
        affine[1, 3] = 100 + millimetres  # the reader allows 0.001 mm here
        write_volume(folder / f"Odd_{name}.nii.gz", np.zeros(SHAPE, np.int16), affine)
    affine[1, 3] = 100.0009
    write_volume(folder / "Odd_seg.nii.gz", label_map(), affine)
    (problem,) = check(tmp_path)  # T1 is near to all others, but T1ce comes first
    assert (problem.kind, problem.severity) == ("misaligned", "error")
    assert problem.file == str(folder / "Odd_flair.nii.gz")
    assert "differs from that of Odd_t1ce.nii.gz by up to 0.0018 mm" in problem.message
    reader = NibabelReader()
    files = [folder / f"Odd_{name}.nii.gz" for name in OLD]
    reader.get_data(reader.read(files[:3]))
    with pytest.raises(RuntimeError, match="affine matrix of all images should be the same"):
        reader.get_data(reader.read(files))


def test_a_first_image_that_is_the_odd_one_out_is_the_one_to_name(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    shifted = np.eye(4)
    shifted[0, 3] = 3.0
    write_volume(folder / "Odd_t1ce.nii.gz", np.zeros(SHAPE, np.int16), shifted)
    (problem,) = check(tmp_path)
    assert problem.file == str(folder / "Odd_t1ce.nii.gz")
    assert problem.message == "affine differs from that of Odd_t1.nii.gz by up to 3 mm"


def test_header_that_contradicts_itself(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    path = folder / "Odd_t1.nii.gz"
    set_header(path, pixdim=[1, 2, 1, 1, 0, 0, 0, 0])
    affine = NibabelReader().read(str(path)).affine  # where the network will find it
    np.testing.assert_array_equal(Volume(str(path)).affine, affine)
    assert affine[0, 0] == 2
    assert nib.load(path).affine[0, 0] == 1
    contradiction, misaligned = check(tmp_path)
    assert (contradiction.kind, contradiction.severity) == ("voxel-size", "warning")
    assert "its pixdim (2, 1, 1) contradicts its affine" in contradiction.message
    assert (misaligned.kind, misaligned.severity) == ("misaligned", "error")


def test_implausible_voxels_are_said_once_a_case(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    for name in (*OLD, "seg"):
        write_volume(folder / f"Odd_{name}.nii.gz", label_map(), np.diag([12.0, 12, 12, 1]))
    (problem,) = check(tmp_path)
    assert problem.message == "voxels of 12 × 12 × 12 mm are implausible for a head scan"
    assert (problem.kind, problem.severity) == ("voxel-size", "warning")


def test_label_beside_its_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    write_volume(folder / "Odd_seg.nii.gz", label_map(), shifted)
    (problem,) = refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))
    assert (problem.severity, problem.file) == ("warning", str(folder / "Odd_seg.nii.gz"))
    assert "by up to 0.5 mm" in caplog.text
    write_volume(folder / "Odd_seg.nii.gz", label_map(), np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(DataError, match="store it in the orientation of the scan"):
        refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))


def test_axes_that_cannot_be_written_back(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "Odd", "Odd")
    sagittal = np.eye(4)[[2, 0, 1, 3]]
    for name in OLD:
        write_volume(folder / f"Odd_{name}.nii.gz", np.zeros(SHAPE, np.int16), sagittal)
    write_volume(folder / "Odd_seg.nii.gz", label_map(), sagittal)
    with pytest.raises(DataError, match="its axes are ASR, not left-right, front-back, up-down"):
        refuse_bad_cases(scan(tmp_path), find_layout(tmp_path))


def test_old_code_under_new_names(tmp_path: Path) -> None:
    write_case(tmp_path / "B", "B", suffixes=NEW, separator="-", codes=(1, 2, 4))
    (problem,) = check(tmp_path)
    assert "label code 4" in problem.message
    assert "4 is enhancing tumour up to BraTS 2022" in problem.mend
    assert "in BraTS 2024 it is the resection cavity: write 0" in problem.mend


def test_a_code_beside_the_layout_s_own_is_another_tissue(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    write_case(new / "B", "B", suffixes=NEW, separator="-", codes=(1, 2, 3, 4))
    write_case(old / "B", "B", codes=(1, 2, 3, 4))
    assert [problem.mend for problem in check(new)] == [
        "4 beside 3 is the resection cavity of BraTS 2024: write 0 for it"
    ]
    assert [problem.mend for problem in check(old)] == [
        "3 beside 4 is non-enhancing core of BraTS up to 2015: write 1 for 3"
    ]


def write_scaled(path: Path, voxels: np.ndarray, slope: float) -> None:
    write_volume(path, voxels.astype(np.uint8))
    set_header(path, scl_slope=slope, scl_inter=0)


def test_scaled_labels_count_as_they_are_loaded(tmp_path: Path) -> None:
    path = write_case(tmp_path / "A", "A") / "A_seg.nii.gz"
    write_scaled(path, 10 * label_map((1, 2, 4)), 0.1)
    assert not np.array_equal(np.unique(nib.load(path).get_fdata()), [0, 1, 2, 4])
    loaded = LoadImaged("label")({"label": str(path)})["label"]
    np.testing.assert_array_equal(np.unique(loaded), [0, 1, 2, 4])
    assert check(tmp_path) == []


def test_labels_that_were_scaled_by_mistake(tmp_path: Path) -> None:
    path = write_case(tmp_path / "A", "A") / "A_seg.nii.gz"
    image = nib.Nifti1Image(label_map((1, 2, 4)).astype(np.float32), np.eye(4))
    image.set_data_dtype(np.uint8)
    nib.save(image, path)  # nibabel spreads 0 to 4 over 0 to 255
    (problem,) = check(tmp_path)
    assert "label code 1.00392, 1.99216 is not one of" in problem.message
    assert problem.mend.endswith("store them as integers, without scl_slope")


def test_a_file_twice(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "A", "A")
    write_volume(folder / "A_t1.nii", np.zeros(SHAPE, np.int16))
    (problem,) = check(tmp_path)
    assert (problem.kind, problem.severity) == ("file-twice", "warning")
    assert problem.file == str(folder / "A_t1.nii.gz")
    assert problem.message == "A_t1.nii is there too, and is the one that is used"


def test_a_file_under_the_name_of_another_layout(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "A", "A")
    for name in ("t1c", "T1GD"):
        wrong = folder / f"A_{name}.nii.gz"
        next(folder.glob("A_[tT]1[cCgG]*")).rename(wrong)
        (problem,) = check(tmp_path)
        assert problem.message == "no file for T1ce"
        assert f"rename {wrong.name} to A_t1ce.nii.gz" in problem.mend


def test_a_label_map_alone(tmp_path: Path) -> None:
    write_case(tmp_path / "A", "A")
    write_volume(tmp_path / "out" / "B_seg.nii.gz", label_map())
    (problem,) = check(tmp_path)
    assert (problem.case, problem.kind) == ("B", "missing-modality")
    assert "a label map alone is probably a prediction" in problem.mend


def test_decathlon(tmp_path: Path) -> None:
    write_task01(tmp_path, ("BRATS_001", "BRATS_002", "BRATS_003"))
    assert check(tmp_path) == []
    write_volume(tmp_path / "imagesTr/BRATS_002.nii.gz", np.zeros((*SHAPE, 3), np.int16))
    write_volume(tmp_path / "imagesTr/BRATS_003.nii.gz", np.zeros(SHAPE, np.int16))
    write_volume(tmp_path / "labelsTr/BRATS_001.nii.gz", label_map((1, 4)))
    problems = check(tmp_path)
    assert [problem.case for problem in problems] == ["BRATS_001", "BRATS_002", "BRATS_003"]
    assert "label code 4 is not one of" in problems[0].message
    assert "expected 4D with 4 channels, found shape (6, 5, 4, 3)" in problems[1].message
    assert "expected 4D with 4 channels, found shape (6, 5, 4)" in problems[2].message


def test_cut_short_behind_the_header(tmp_path: Path) -> None:
    folder = tmp_path / "Bad"
    noise = np.random.default_rng(0)
    for suffix in (*OLD, "seg"):
        write_volume(folder / f"Bad_{suffix}.nii.gz", noise.integers(0, 3, (24,) * 3, np.uint8))
    for suffix in ("t1", "seg"):
        truncate(folder / f"Bad_{suffix}.nii.gz", 2000)
    write_volume(folder / "Bad_t2.nii.gz", np.full((24,) * 3, np.inf, np.float32))
    (label,) = check(tmp_path)
    assert label.file == str(folder / "Bad_seg.nii.gz")
    assert "the label map can't be read" in label.message
    again, broken, infinite = (p for p in check(tmp_path, full=True) if p.severity == "error")
    assert again == label
    assert broken.file == str(folder / "Bad_t1.nii.gz")
    assert "voxels can't be read" in broken.message
    assert infinite.file == str(folder / "Bad_t2.nii.gz")
    assert infinite.message == "non-finite voxels"
