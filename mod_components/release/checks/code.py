"""The modules that a packed bundle brings along."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import mod_components
from mod_components.errors import SettingsError
from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.vendor import config_modules, vendored_files, vendored_name

__all__ = ["check_code", "names_code"]

HOME = "mod_components"
PACKAGE = re.compile(rf"{HOME}(_\d\w*)?")


def check_code(bundle: Bundle) -> list[Problem]:
    """Find modules that are not, letter for letter, those of this release.

    Only then may they be imported to build the network: whatever else a module does, it does not
    do it in a bundle that passes.

    Args:
        bundle: the bundle.
    """
    if not bundle.package:
        return []
    others = [
        Problem("code", name, f"is a second package beside {bundle.package}; leave it out")
        for name in bundle.packages[1:]
    ]
    return others + _modules(bundle)


def _modules(bundle: Bundle) -> list[Problem]:
    if bundle.package != vendored_name():
        message = (
            f"is of another release than {mod_components.__version__}, which can't vouch for it; "
            "verify it with its own release"
        )
        return [Problem("code", bundle.package, message)]
    configs = [text for path, text in bundle.texts.items() if path.startswith("configs/")]
    named = config_modules(configs, bundle.package)
    known = {name for name in named if not names_code(bundle, bundle.package + name[len(HOME) :])}
    try:
        own = _own_files(bundle.package, frozenset(known))
    except SettingsError as error:
        return [Problem("code", bundle.package, f"{error}; pack the bundle anew")]
    found = {
        path
        for path in bundle.entries
        if path.startswith(f"{bundle.package}/") and path.endswith(".py")
    }
    surplus = "is no module that the configs need, or was changed; pack the bundle anew"
    missing = "is missing, and the configs or other modules need it; pack the bundle anew"
    return [
        Problem("code", path, surplus if path in found else missing)
        for path in sorted(found | set(own))
        if path not in found or bundle.texts.get(path) != own.get(path)
    ]


@cache
def _own_files(package: str, modules: frozenset[str]) -> dict[str, str]:
    """This release's modules, as packing writes them."""
    return vendored_files(package, modules)


def names_code(bundle: Bundle, dotted: str) -> str:
    """Whether a class, function or module of ours is there for the config that names it.

    Args:
        bundle: the bundle.
        dotted: its name, such as ``mod_components_0_1_0.data.ReorderChannelsd``.

    Returns:
        What is wrong, and the mend; empty when it is there.
    """
    package, *parts = dotted.split(".")
    if package == bundle.package != vendored_name():
        folder = bundle.folder / package
    elif package == (bundle.package or HOME) and (bundle.package or not bundle.packed):
        folder = Path(mod_components.__file__).parent  # which the bundle's own modules must equal
    else:
        return "of a package that the bundle does not bring along; pack the bundle anew"
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
    return "which is not in that package; correct the name"
