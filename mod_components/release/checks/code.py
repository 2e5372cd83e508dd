"""The modules that a packed bundle brings along."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import mod_components
from mod_components.errors import SettingsError
from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.vendor import vendored_files, vendored_name

__all__ = ["check_code", "names_code"]

PACKAGE = re.compile(r"mod_components(_\d\w*)?")


def check_code(bundle: Bundle) -> list[Problem]:
    """Find modules that are not, letter for letter, those of this release.

    Only then may they be imported to build the network: whatever else a module does, it does not
    do it in a bundle that passes.

    Args:
        bundle: the bundle.
    """
    if not bundle.package:
        return []
    if bundle.package != vendored_name():
        message = (
            f"is of another release than {mod_components.__version__}, which can't vouch for it; "
            "verify it with its own release"
        )
        return [Problem("code", bundle.package, message)]
    problems = []
    for path in bundle.entries:
        vendored = path.startswith(f"{bundle.package}/") and path.endswith(".py")
        if vendored and bundle.texts.get(path) != _own(path, bundle.package):
            message = "is no module of this release, or was changed; pack the bundle anew"
            problems.append(Problem("code", path, message))
    return problems


@cache
def _own(path: str, package: str) -> str | None:
    """Text of the module of this release that belongs at a path."""
    inner = path.removeprefix(f"{package}/").removesuffix(".py").removesuffix("__init__")
    module = f"mod_components/{inner}".rstrip("/").replace("/", ".")
    try:
        return vendored_files(package, [module]).get(path)
    except SettingsError:
        return None


def names_code(bundle: Bundle, dotted: str) -> str:
    """Whether a class, function or module of ours is there for the config that names it.

    Args:
        bundle: the bundle.
        dotted: its name, such as ``mod_components_0_1_0.data.ReorderChannelsd``.

    Returns:
        What is wrong, and the mend; empty when it is there.
    """
    package, *parts = dotted.split(".")
    if package == bundle.package:
        root = bundle.folder
    elif package == "mod_components" and not bundle.packed and not bundle.package:
        root = Path(mod_components.__file__).parents[1]  # a bundle of the repository
    else:
        return "a package that the bundle does not bring along; pack the bundle anew"
    folder = root / package
    for depth in range(len(parts), -1, -1):
        base = folder.joinpath(*parts[:depth])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.is_file():
            continue
        rest = parts[depth:]
        text = file.read_text(encoding="utf-8", errors="replace")
        if not rest or re.search(rf"\b{re.escape(rest[0])}\b", text):
            return ""
        break
    return "which is not among the modules that it brings along; pack the bundle anew"
