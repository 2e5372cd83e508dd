"""A thousand NIfTI files, each damaged at random, in one process with little memory.

None may raise, hang or fill the memory, and what is found good must be loaded by MONAI's reader.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

FILES, SEED = 1000, 7
SHAPE = (16, 14, 12)
SECONDS_A_FILE = 10
MEMORY = 2 * 2**30
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
INTEGERS = (0, -1, 1, 7, 255, 348, 32767, -32768)


def good_file(rng: random.Random) -> bytes:
    """A small image as any of the usual types, sometimes with an extension or as NIfTI-2."""
    kind = rng.choice([nib.Nifti1Image, nib.Nifti1Image, nib.Nifti2Image])
    dtype = rng.choice(["u1", "<i2", ">i2", "<f4", "<f8"])
    voxels = np.zeros(SHAPE, np.int16)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(1, 200, (10, 10, 8))
    voxels[3:13, 2:12, 2:10] = noise
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    image = kind(voxels.astype(dtype), np.diag([-1.0, -1.0, 1.0, 1.0]), header)
    if rng.random() < 0.3:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", bytes(40)))
    return image.to_bytes()


def header_bytes(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 3, 20])):
        content[rng.randrange(360)] = rng.randrange(256)


def any_byte(rng: random.Random, content: bytearray) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def field(rng: random.Random, content: bytearray) -> None:
    """One or two header fields to values that nobody expects."""
    kind = nib.Nifti2Header if content[0] == 28 or content[3] == 28 else nib.Nifti1Header
    size = kind.template_dtype.itemsize
    header = kind(bytes(content[:size]), check=False)
    names = ["dim", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter"]
    names += ["qform_code", "sform_code", "quatern_b", "srow_x", "srow_y", "srow_z", "magic"]
    for name in rng.sample(names, rng.choice([1, 2])):
        value = header[name]
        if name == "magic":
            header[name] = rng.choice([b"ni1", b"n+2", b"xxxx", b""])
            continue
        array = np.atleast_1d(np.array(value))
        pool = FLOATS if array.dtype.kind == "f" else INTEGERS
        array[rng.randrange(array.size)] = np.array(rng.choice(pool)).astype(array.dtype)
        header[name] = array.reshape(np.shape(value))
    content[:size] = header.binaryblock


def extension(rng: random.Random, content: bytearray) -> None:
    """Say that there is an extension, of any size."""
    start = 544 if content[0] == 28 or content[3] == 28 else 352
    size = rng.choice([0, -8, 8, 15, 16, 2**31 - 1, -(2**31), 64])
    content[start - 4 : start] = b"\1\0\0\0"
    content[start : start + 4] = size.to_bytes(4, rng.choice(["little", "big"]), signed=True)


def cut(rng: random.Random, content: bytearray) -> None:
    del content[rng.randrange(len(content)) :]


def grow(rng: random.Random, content: bytearray) -> None:
    content += bytes(rng.choice([1, 1000, 2**21]))


CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(header_bytes, header_bytes, field, field, field),
    *(any_byte, extension, cut, grow),
)


def mutate(rng: random.Random) -> tuple[bytes, str]:
    """Content and extension of one damaged file."""
    content = bytearray(good_file(rng))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if len(content) > 600:
            rng.choice(CHANGES)(rng, content)
    if rng.random() < 0.5:
        return bytes(content), ".nii"
    packed = bytearray(gzip.compress(bytes(content), 1))
    if rng.random() < 0.4:
        rng.choice([any_byte, any_byte, cut, grow])(rng, packed)
    return bytes(packed), ".nii.gz"


def write_files(folder: Path) -> None:
    """Cases of one damaged file each; the other files of a case are good."""
    rng = random.Random(SEED)
    good = {name: good_file(rng) for name in ("t1ce", "t1", "t2", "flair")}
    label = np.zeros(SHAPE, np.uint8)
    label[6:9, 6:9, 5:8] = 4
    image = nib.Nifti1Image(label, np.diag([-1.0, -1.0, 1.0, 1.0]))
    good["seg"] = image.to_bytes()
    for name, content in good.items():
        (folder / name).write_bytes(content)
    for index in range(FILES):
        content, extension = mutate(rng)
        case = folder / f"Case_{index:04d}"
        case.mkdir()
        bad = rng.choice(list(good))
        for name in good:
            path = case / f"{case.name}_{name}.nii"
            if name == bad:
                path.with_suffix(extension).write_bytes(content)
            else:
                path.symlink_to(folder / name)


def check_all(folder: str) -> None:
    """What the process of its own does: seconds of the slowest case, problems, disagreements."""
    import resource

    from monai.data import NibabelReader

    from mod_components.data import check_cases, read_folder

    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
    layout, records = read_folder(folder)
    slowest, kinds, disagreements = 0.0, {}, []
    for record in records:
        start = time.perf_counter()
        problems = check_cases([record], layout, full=True)
        slowest = max(slowest, time.perf_counter() - start)
        for problem in problems:
            kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
        if not any(problem.severity == "error" for problem in problems):
            reader = NibabelReader()
            try:
                reader.get_data(reader.read(list(record.images)))
                reader.get_data(reader.read(record.label))
            except Exception as error:
                disagreements.append(f"{record.case}: {error}")
    found = {"cases": len(records), "slowest": slowest, "peak": peak_memory(), "kinds": kinds}
    print(json.dumps({**found, "disagreements": disagreements}))


def peak_memory() -> int:
    """Peak resident memory of this process in bytes.

    Not ``ru_maxrss``, in which Linux counts what the process was forked from before its program
    was loaded: a whole test session.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux does")
def test_thousand_damaged_files(tmp_path: Path) -> None:
    write_files(tmp_path)
    program = "import sys; from tests.data.checks.test_mutations import check_all as f; "
    command = [sys.executable, "-W", "ignore", "-c", program + "f(sys.argv[1])", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["cases"] == FILES
    assert found["slowest"] < SECONDS_A_FILE
    assert found["peak"] < MEMORY
    assert "check-failed" not in found["kinds"]
    assert found["disagreements"] == []
    # the damage is varied, and most of it is seen
    assert len(found["kinds"]) >= 12
    assert sum(found["kinds"].values()) > FILES / 2
