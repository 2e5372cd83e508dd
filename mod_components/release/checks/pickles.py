"""Pickled code, which runs when a file is loaded; found without loading anything."""

from __future__ import annotations

import pickletools
import re
import stat
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.unpack import UNREADABLE

__all__ = ["check_pickles", "pickled_names"]

SUFFIXES = {".pkl", ".pickle", ".p", ".joblib", ".dill", ".pck", ".cloudpickle"}
LARGEST_PICKLE = 2**26  # a state_dict's pickle lists names and shapes: some hundred bytes a tensor
# what a state_dict, and a TorchScript file, is built of; torch's own safe loader allows more
ALLOWED = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (\w+Storage|Size|device|float(16|32|64)|bfloat16|int(8|16|32|64)|uint8|bool)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch\.jit\._pickle \w+"
    r"|__torch__\.[\w.]+ \w+"
)
# they name code by what stands on the stack, or in a registry: no state_dict has them
HIDDEN = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "INST", "OBJ"}
STATE_DICT = "save the plain network's state_dict: torch.save(network.state_dict(), path)"


def check_pickles(bundle: Bundle) -> list[Problem]:
    """Find pickled code in every file, whatever its name says.

    Args:
        bundle: the bundle.
    """
    problems = []
    for path, facts in bundle.entries.items():
        if not stat.S_ISREG(facts.st_mode):
            continue
        if found := _pickled(bundle.folder / path):
            mend = STATE_DICT if path.endswith((".pt", ".pth")) else "leave the file out"
            problems.append(Problem("pickle", path, f"{found}; {mend}"))
    return problems


def _pickled(path: Path) -> str:
    """What is wrong with a file; empty when it holds no pickle, or none that names code."""
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            return _in_zip(path)
        file.seek(0)
        if found := _object_array(file):
            return found
        file.seek(0)
        names = pickled_names(file)
    if names is not None:
        named = f" that names {', '.join(names[:3])}" if names else ""
        return f"is a pickle{named}"
    if path.suffix.lower() in SUFFIXES:
        return f"has the suffix {path.suffix}, under which others load it as a pickle"
    return ""


def _in_zip(path: Path) -> str:
    """torch's files are zips that hold a pickle of names and shapes beside plain numbers."""
    if path.suffix.lower() not in (".pt", ".pth", ".ts", ".npz"):
        return "is an archive inside the bundle, whose contents nobody sees"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        with zipfile.ZipFile(path) as archive:
            first = min((entry.header_offset for entry in archive.infolist()), default=0)
            if start != b"PK\x03\x04" or first or archive.comment:
                return "holds something before its first or after its last entry"  # torch loads it
            for entry in archive.infolist():
                if entry.file_size > 2 * path.stat().st_size:
                    return f"unpacks to {entry.file_size} bytes at least"
                with archive.open(entry) as member:
                    found = _in_member(entry, member)
                if found:
                    return found
    except (*UNREADABLE, OSError) as error:
        return f"is a damaged archive ({error})"
    return ""


def _in_member(entry: zipfile.ZipInfo, member: IO[bytes]) -> str:
    if found := _object_array(member):
        return found
    # torch finds it in whatever case; the others are numbers, which can look like an old pickle
    if not entry.filename.lower().endswith(".pkl"):
        return ""
    member.seek(0)
    names = pickled_names(member)
    if names is None:
        return "holds a damaged pickle"
    if unsafe := [name for name in names if not ALLOWED.fullmatch(name)]:
        shown = ", ".join(name.replace(" ", ".") for name in unsafe[:3])
        return f"holds pickled code, which runs when it is loaded ({shown})"
    return ""


def _object_array(file: IO[bytes]) -> str:
    """NumPy pickles arrays of objects; its other arrays are plain numbers behind a header."""
    if file.read(6) != b"\x93NUMPY":
        return ""
    try:
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        dtype = read(file)[2]
    except ValueError as error:
        return f"has a damaged NumPy header ({error})"
    return "is an array of Python objects, which NumPy pickles" if dtype.hasobject else ""


def pickled_names(file: IO[bytes]) -> list[str] | None:
    """The classes and functions that a pickle names, read as data, never run.

    A loader runs a pickle as it reads it, so that a truncated one is as dangerous as a whole one.
    Text can look like a pickle of the oldest kind by chance: that kind counts from the first call.

    Args:
        file: a file at the pickle's start.

    Returns:
        Modules and names, one blank between; what a pickle hides by other ways appears as
        ``"? NAME"`` of the instruction. None when this is no pickle.
    """
    marked = file.read(1) == b"\x80"
    file.seek(0)
    names: list[str] = []
    whole = called = False
    try:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                names.append(str(argument))
            elif opcode.name in HIDDEN:
                names.append(str(argument) if opcode.name == "INST" else f"? {opcode.name}")
            called |= opcode.name in CALLS
            whole = opcode.name == "STOP"
            if (position or 0) > LARGEST_PICKLE:
                names.append("? too much")
                break
    except Exception:  # whatever stands behind: a loader would have run what stands before
        pass
    plain = [name for name in names if re.fullmatch(r"[\w.]+ [\w.]+|\? .+", name)]
    if marked:
        return names if whole or plain else None
    return plain if called and plain == names and names else None
