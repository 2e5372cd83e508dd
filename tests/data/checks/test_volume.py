"""Reading a NIfTI file: the same values as nibabel's, and never more than a file can hold."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mod_components.data.checks.volume import MAX_VOXELS, Volume, VolumeError
from tests.data.folders import SHAPE


def noise(dtype: str) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, SHAPE).astype(dtype)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u2", "f4", "f8", "i8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_are_those_of_nibabel(
    tmp_path: Path, extension: str, dtype: str, kind: type
) -> None:
    path = tmp_path / f"v{extension}"
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    header = kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    image = kind(noise(dtype), affine, header)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
    nib.save(image, path)
    volume = Volume(str(path))
    assert volume.error is None
    assert (volume.shape, volume.orientation, volume.spacing) == (SHAPE, "LPS", (1.0, 1.0, 2.0))
    np.testing.assert_array_equal(volume.voxels(), np.asanyarray(nib.load(path).dataobj))
    assert not volume.trailing


def test_scaled_values_are_those_of_nibabel(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise("i2"), np.eye(4))
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "v.nii.gz")
    values = Volume(str(tmp_path / "v.nii.gz")).voxels()
    np.testing.assert_array_equal(values, np.asanyarray(nib.load(tmp_path / "v.nii.gz").dataobj))
    assert values.min() < 0


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise("i2"), np.eye(4)), tmp_path / "v.nii")
    content = (tmp_path / "v.nii").read_bytes()
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(Volume(str(path)).voxels(), noise("i2"))


def test_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 200, (20, 20, 20), np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the checksum, which stands before the length
    path.write_bytes(content)
    volume = Volume(str(path))
    assert volume.error is None
    with pytest.raises(VolumeError, match="CRC check failed") as caught:
        volume.voxels()
    assert caught.value.kind == "damaged"


@pytest.mark.parametrize(
    ("error", "kind", "mend"),
    [(PermissionError, "no-permission", "chmod u+r"), (FileNotFoundError, "disappeared", "moves")],
)
def test_out_of_reach(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[OSError],
    kind: str,
    mend: str,
) -> None:
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(noise("i2"), np.eye(4)), path)
    good = Volume(str(path))

    def refuse(self: Volume) -> None:
        raise error("no")

    monkeypatch.setattr(Volume, "_open", refuse)
    bad = Volume(str(path)).error
    assert bad is not None
    assert bad.kind == kind
    assert mend in bad.mend
    with pytest.raises(VolumeError) as caught:
        good.voxels()
    assert caught.value.kind == kind


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    error = Volume(str(tmp_path / "v.nii.gz")).error
    assert error is not None
    assert (error.kind, str(error)) == ("disappeared", "it disappeared while being read")


@pytest.mark.parametrize("more", [b"abcdef", b"a", bytes(5), gzip.compress(b"x", mtime=0)])
def test_bytes_after_the_end_of_a_gzip_file(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "v.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 200, (20, 20, 20), np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    path.write_bytes(path.read_bytes() + more)
    volume = Volume(str(path))
    np.testing.assert_array_equal(volume.voxels(), np.asanyarray(nib.load(path).dataobj))
    assert bool(volume.trailing) == (more[:1] == b"a")  # zeros are padding, more gzip is one file


def header(shape: tuple[int, ...], dtype: type = np.int16) -> bytes:
    block = nib.Nifti1Header()
    block.set_data_dtype(dtype)
    block.set_data_shape(shape)
    block["vox_offset"] = 352
    return bytes(block.binaryblock) + bytes(4)


def test_promises_that_a_file_cannot_keep(tmp_path: Path) -> None:
    plain, packed = tmp_path / "v.nii", tmp_path / "v.nii.gz"
    plain.write_bytes(header((100, 100, 100)) + bytes(1999_999))
    packed.write_bytes(gzip.compress(header((400, 400, 400))))
    for path in (plain, packed):
        error = Volume(str(path)).error
        assert error is not None
        assert error.kind == "truncated"
    plain.write_bytes(header((100, 100, 100)) + bytes(2_000_000))
    assert Volume(str(plain)).error is None
    packed.write_bytes(gzip.compress(header((30_000, 30_000, 30_000))))
    error = Volume(str(packed)).error
    assert error is not None
    assert error.kind == "too-large"
    assert MAX_VOXELS < 30_000**3


def test_zeros_packed_as_tightly_as_can_be_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(header((256, 256, 256), np.uint8) + bytes(256**3), 9))
    assert path.stat().st_size < 256**3 / 1000
    assert not Volume(str(path)).voxels().any()


BOMB = """
import sys
from mod_components.data.checks.volume import Volume
from tests.data.checks.test_mutations import peak_memory
before = peak_memory()
volume = Volume(sys.argv[1])
volume.voxels()
assert volume.trailing
print(peak_memory() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux does")
def test_a_file_that_inflates_without_end(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    zeros = gzip.compress(bytes(64 * 2**20))
    # 2 GB of zeros in 2 MB behind a header of a small volume
    path.write_bytes(gzip.compress(header((10, 10, 10)) + bytes(2000)) + 32 * zeros)
    assert path.stat().st_size < 2.2e6
    command = [sys.executable, "-c", BOMB, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 64 * 2**20
