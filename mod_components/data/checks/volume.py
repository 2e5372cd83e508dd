"""Read one NIfTI file, trusting nothing that its header says."""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import stat
import zlib
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.volumeutils import apply_read_scaling

COPY_AGAIN = "copy or download it again"

# 512 MiB as the 32-bit floats that a network sees; the largest published head scans have 0.4 of it.
MAX_VOXELS = 512**3
MAX_BYTES = 2**30
# Deflate can't pack more tightly (zlib.net/zlib_tech.html).
MAX_DEFLATE_RATIO = 1032
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_TRAILING_BYTES = 2**20
_MUCH_MORE = (
    "more than 1 MiB follows the voxels that its header states",
    "see that its header states the true shape",
)
_PIECE = 4 * 2**20
_IMAGES: dict[type, type] = {
    nib.Nifti1Header: nib.Nifti1Image,
    nib.Nifti2Header: nib.Nifti2Image,
}
# nibabel's own error level; what it mends by itself (below 40) is not said on the console.
_NIBABEL_ERROR_LEVEL = 40
_silent = logging.getLogger(f"{__name__}.nibabel")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class VolumeError(Exception):
    """A file that can't be used; ``kind``, message and ``mend`` become a Problem."""

    def __init__(self, kind: str, message: str, mend: str = COPY_AGAIN) -> None:
        super().__init__(message)
        self.kind, self.mend = kind, mend


class Volume:
    """One file's header, and what went wrong when it was read.

    Nothing is allocated by what a header promises before the file is known to be able to hold it,
    and compressed data are inflated in pieces, so that neither a damaged header nor a file that
    inflates without end fills the memory. What is accepted is read to the values that nibabel
    gives.

    Attributes:
        path: the file.
        shape: the header's shape; empty where it can't be read.
        affine: (4, 4), voxel indices to mm, as MONAI's reader takes it.
        pixdim: voxel sizes in mm as the header states them beside the affine.
        contradicts_itself: whether ``pixdim`` and the stored affine differ by more than 1%.
        error: why the file can't be used; None for a good header.
        trailing: (what, mend) where something follows the voxels that does not belong there;
            known once they have been read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.affine = np.eye(4)
        self.pixdim: tuple[float, ...] = ()
        self.error: VolumeError | None = None
        self.trailing: tuple[str, str] | None = None
        self.contradicts_itself = False
        try:
            self._read_header()
        except VolumeError as error:
            self.error = error
        except (FileNotFoundError, PermissionError) as error:
            self.error = _out_of_reach(error)
        except EOFError as error:
            self.error = VolumeError("truncated", _unreadable(error))
        except (gzip.BadGzipFile, zlib.error) as error:
            self.error = VolumeError("damaged", _unreadable(error))
        except Exception as error:  # nibabel, gzip and zlib raise whatever garbage leads them to
            self.error = VolumeError("not-nifti", _unreadable(error))

    @property
    def scaled(self) -> bool:
        """Whether the header multiplies the stored values or adds to them."""
        slope, inter = self.header.get_slope_inter()
        return slope is not None and (slope, inter) != (1.0, 0.0)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along the three axes, from the affine."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))

    @property
    def orientation(self) -> str:
        """Where the three axes point, such as "LPS"; "?" for an axis without direction."""
        return "".join(str(code or "?") for code in nib.aff2axcodes(self.affine))

    @property
    def has_grid(self) -> bool:
        """Whether the affine is finite and can be inverted, whatever the voxels' size."""
        matrix = self.affine[:3, :3]
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(matrix, axis=0)
            if not np.isfinite([*self.affine.ravel(), *lengths]).all() or lengths.min() < 1e-6:
                return False
            return bool(abs(np.linalg.det(matrix / lengths)) > 1e-3)

    def voxels(self) -> np.ndarray:
        """Values with the header's scaling applied, in the file's type where there is none.

        Raises:
            VolumeError: if the file ends early, is damaged, or its scaling can't be applied.
        """
        try:
            return self._read_voxels()
        except VolumeError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise _out_of_reach(error) from error
        except EOFError as error:
            raise VolumeError("truncated", f"voxels can't be read ({brief(error)})") from error
        except (OSError, zlib.error) as error:
            raise VolumeError("damaged", f"voxels can't be read ({brief(error)})") from error
        except Exception as error:
            raise VolumeError("damaged", f"voxels can't be used ({brief(error)})") from error

    def _read_header(self) -> None:
        size = self._file_size()
        with self._open() as file:
            header = _parse(file)
        self.pixdim = tuple(float(size) for size in header["pixdim"][1:4])
        header.check_fix(logger=_silent, error_level=_NIBABEL_ERROR_LEVEL)
        self.header = header
        self.shape = tuple(int(length) for length in header.get_data_shape())
        self.dtype = header.get_data_dtype()
        self.offset = int(header.get_data_offset())
        if not self.shape or min(self.shape) < 1:
            raise VolumeError("bad-dimensions", f"its header states the shape {self.shape}")
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            message = f"its voxels are of type {self.dtype}, which is no plain number"
            raise VolumeError("bad-type", message, "store grey values as integers or floats")
        if math.prod(self.shape[:3]) > MAX_VOXELS or self._promised > MAX_BYTES:
            message = f"its header states {self.shape} voxels, more than a head scan can have"
            mend = f"{COPY_AGAIN}, or resample it: a head scan has about 9 million voxels"
            raise VolumeError("too-large", message, mend)
        self._expect_room(size)
        try:
            self.affine = np.asarray(header.get_best_affine(), dtype=float)
            if self.has_grid:
                self._follow_reader(header)
        except Exception as error:
            message = f"its header has no valid affine ({brief(error)})"
            raise VolumeError("bad-affine", message, "convert the original scan again") from error

    def _follow_reader(self, header: Any) -> None:
        """Take the affine that MONAI's reader makes of a header which contradicts itself.

        Where the voxel size beside the affine (pixdim) is another one, the reader trusts that and
        takes the affine of the quaternions.
        """
        stated = np.abs(self.pixdim)
        self.contradicts_itself = not np.allclose(stated, self.spacing, rtol=0.01)
        empty = np.broadcast_to(np.uint8(0), self.shape)
        image = _IMAGES[type(header)](empty, self.affine, header)
        self.affine = np.asarray(correct_nifti_header_if_necessary(image).affine, dtype=float)

    def _file_size(self) -> int:
        if os.path.islink(self.path) and not os.path.exists(self.path):
            message = f"the link leads nowhere ({os.path.realpath(self.path)})"
            raise VolumeError("dangling-link", message, "mount or copy what it points to")
        state = os.stat(self.path)
        # a pipe would wait for ever
        if not stat.S_ISREG(state.st_mode):
            mend = "put the scan there, or remove it"
            raise VolumeError("not-a-file", "not a regular file", mend)
        if state.st_size == 0:
            raise VolumeError("empty-file", "the file is empty (0 bytes)")
        return state.st_size

    @property
    def _compressed(self) -> bool:
        return self.path.lower().endswith(".gz")

    def _open(self) -> IO[bytes]:
        with open(self.path, "rb") as file:
            start = file.read(4)
        packed = start[:2] == b"\x1f\x8b"
        if packed == self._compressed:
            return cast(IO[bytes], (gzip.open if packed else open)(self.path, "rb"))
        if packed:
            mend = "call it .nii.gz, or decompress it"
            raise VolumeError("wrong-extension", "a gzip file without .gz in its name", mend)
        if int.from_bytes(start, "little") in (348, 540):
            mend = "call it .nii, or compress it"
            raise VolumeError("wrong-extension", "called .gz, but not compressed", mend)
        raise VolumeError("not-nifti", "not a readable NIfTI file (not a gzip file)")

    @property
    def _promised(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _expect_room(self, size: int) -> None:
        """Compare what the header promises with what a file of this size can hold."""
        needed = self.offset + self._promised
        if not self._compressed:
            self.trailing = _MUCH_MORE if size - needed > _MAX_TRAILING_BYTES else None
            if size < needed:
                message = f"it ends after {size} bytes; its header promises {needed}"
                raise VolumeError("truncated", message)
        elif needed > MAX_DEFLATE_RATIO * size:
            message = f"its header promises {needed} bytes, more than {size} compressed can hold"
            raise VolumeError("truncated", message)

    def _read_voxels(self) -> np.ndarray:
        if self.error:
            raise self.error
        raw = np.empty(self._promised, np.uint8)
        with self._open() as file:
            _skip(file, self.offset)
            got = _fill(file, raw.data)
            if got < len(raw):
                message = f"voxels can't be read (it ends {len(raw) - got} bytes early)"
                raise VolumeError("truncated", message)
            if self._compressed:  # the checksum stands at the very end
                self.trailing = _read_end(file)
        voxels = raw.view(self.dtype).reshape(self.shape, order="F")
        return apply_read_scaling(voxels, *self.header.get_slope_inter()) if self.scaled else voxels


def _parse(file: IO[bytes]) -> Any:
    """nibabel's header of a NIfTI-1 or NIfTI-2 file, its fields not checked yet."""
    start = file.read(1024)
    kinds = [
        kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(start)
    ]
    if not kinds:
        raise VolumeError("not-nifti", "not a readable NIfTI file (no NIfTI header)")
    kind = kinds[0]
    size = kind.template_dtype.itemsize
    offset = float(kind(start[:size], check=False)["vox_offset"])
    if not size + 4 <= offset <= _MAX_HEADER_BYTES:
        raise VolumeError("bad-header", f"its header says that voxels begin at byte {offset:g}")
    # Extensions have sizes of their own: nibabel sees nothing beyond the voxels' beginning.
    block = start + file.read(max(int(offset) - len(start), 0))
    return kind.from_fileobj(io.BytesIO(block[: int(offset)]), check=False)


def _fill(file: IO[bytes], buffer: memoryview) -> int:
    """Read into a buffer piece by piece; returns how much there was."""
    got = 0
    while got < len(buffer):
        piece = file.read(min(_PIECE, len(buffer) - got))
        if not piece:
            break
        buffer[got : got + len(piece)] = piece
        got += len(piece)
    return got


def _skip(file: IO[bytes], count: int) -> int:
    """Read and forget up to ``count`` bytes; returns how many there were."""
    left = count
    while left and (piece := file.read(min(_PIECE, left))):
        left -= len(piece)
    return count - left


def _read_end(file: IO[bytes]) -> tuple[str, str] | None:
    """Read a little beyond the voxels, as far as the checksum; returns what is too much there."""
    try:
        more = _skip(file, _MAX_TRAILING_BYTES + 1) > _MAX_TRAILING_BYTES
    except gzip.BadGzipFile as error:
        # gzip says this of what follows a part whose checksum was right; nibabel reads that part
        if not str(error).startswith("Not a gzipped file"):
            raise
        return "bytes that are not gzip follow its compressed data", COPY_AGAIN
    return _MUCH_MORE if more else None


def _out_of_reach(error: OSError) -> VolumeError:
    if isinstance(error, PermissionError):
        mend = "chmod u+r the file, and u+rx the folders above it"
        return VolumeError("no-permission", "no permission to read it", mend)
    mend = "see that nothing moves or deletes files, and check again"
    return VolumeError("disappeared", "it disappeared while being read", mend)


def _unreadable(error: Exception) -> str:
    return f"not a readable NIfTI file ({brief(error)})"


def brief(error: Exception) -> str:
    """The error's class and the beginning of its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
