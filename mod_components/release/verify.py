"""Everything that is wrong with a bundle, packed or not, in one go and offline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mod_components.errors import SettingsError
from mod_components.release.checks import (
    Bundle,
    Problem,
    check_code,
    check_configs,
    check_files,
    check_metadata,
    check_network,
    check_pickles,
    check_record,
    check_rendered,
    check_texts,
    check_weights,
)
from mod_components.release.checks.configs import INFERENCE
from mod_components.release.checks.files import WEIGHTS
from mod_components.release.checks.record import short_name
from mod_components.release.unpack import ArchiveError, read_archive, unpack

__all__ = ["Problem", "Report", "bundles_to_verify", "verify"]


@dataclass(frozen=True)
class Report:
    """What was found in one bundle.

    Attributes:
        path: the folder or the zip.
        problems: what is wrong; the bundle passes without any.
        notes: what is worth knowing and no failure.
    """

    path: Path
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def lines(self) -> list[str]:
        """One line each: what is wrong, then the notes, then the outcome."""
        return [
            *(str(problem) for problem in self.problems),
            *(f"note: {note}" for note in self.notes),
            f"{self.path}: " + ("passed" if self.passed else f"{len(self.problems)} problems"),
        ]


def verify(path: str | os.PathLike[str]) -> Report:
    """Check a bundle's folder, or a packed bundle, against everything it must be.

    Nothing in it is imported, built or unpickled unless all checks that read it as data have
    passed and its configs are what this release renders; then its network is built in a process of
    its own. Nothing is written beside it.

    Args:
        path: the folder, or the zip.

    Returns:
        All that is wrong.

    Raises:
        SettingsError: when there is no such folder or file.
    """
    path = Path(path)
    if path.is_dir():
        return _verify_folder(path, Bundle(path.resolve()))
    if not path.is_file():
        raise SettingsError(f"{path} does not exist: give a bundle's folder or a packed bundle.")
    findings = read_archive(path).findings
    if findings:
        return Report(path, [Problem("archive", path.name, str(finding)) for finding in findings])
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        try:
            unpacked = unpack(path, folder)
        except ArchiveError as error:
            message = str(error).removeprefix(f"{path.name}: ")
            return Report(path, [Problem("archive", path.name, message)])
        return _verify_folder(path, Bundle(unpacked, packed=True))


def bundles_to_verify(paths: Sequence[str | os.PathLike[str]], root: str = ".") -> list[Path]:
    """The bundles that a command line names.

    Args:
        paths: folders and zips; ``"all"`` stands for all zips in ``dist/`` or, where there are
            none, for all folders in ``bundles/``.
        root: the repository's root.

    Raises:
        SettingsError: when there is none.
    """
    found: list[Path] = []
    for path in paths:
        if str(path) != "all":
            found.append(Path(path))
            continue
        zips = sorted(Path(root, "dist").glob("*.zip"))
        folders = sorted(p for p in Path(root, "bundles").glob("*") if (p / "configs").is_dir())
        found += zips or folders
    if not found:
        raise SettingsError(
            "no bundle to verify: name a folder or a zip, or run it with 'all' in the repository's "
            "root."
        )
    return found


def _verify_folder(path: Path, bundle: Bundle) -> Report:
    problems = [
        *check_files(bundle),
        *check_texts(bundle),
        *check_pickles(bundle),
        *check_metadata(bundle),
        *check_configs(bundle),
        *check_code(bundle),
        *check_record(bundle),
    ]
    notes = []
    if not any(problem.kind == "pickle" for problem in problems):
        problems += check_weights(bundle)
    if WEIGHTS not in bundle.entries and not bundle.packed:
        message = "is not there, so that no weights were checked; train first"
        notes.append(Problem("missing", WEIGHTS, message))
    problems += check_rendered(bundle, {problem.file for problem in problems})
    if problems:
        message = "the network was not built, because of the above"
        notes.append(Problem("network", INFERENCE, message))
    elif not short_name(bundle):
        message = f"this release has no bundle {bundle.folder.name}: its network was not built"
        notes.append(Problem("network", INFERENCE, message))
    else:
        problems += check_network(bundle)
    return Report(path, problems, notes)
