"""The modules of this package that a packed bundle brings along, under a name of their own."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterable
from importlib import resources
from importlib.util import resolve_name

from mod_components import __version__
from mod_components.errors import SettingsError
from mod_components.release.render import PACKAGE

__all__ = ["config_modules", "vendored_files", "vendored_name"]

# what makes and studies bundles never belongs into one
_NEVER = tuple(f"{PACKAGE}.{name}" for name in ("__main__", "cli", "release", "study"))
_STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# "mod_components.data" and "mod_components::scan", not "-m mod_components tune" or a cache's name
_IN_STRING = re.compile(rf"(?<![\w./-]){PACKAGE}(?=\.[A-Za-z_]|::)")


def vendored_name(version: str = __version__) -> str:
    """Name of the package in a packed bundle, such as ``mod_components_0_1_0``.

    It tells the release, so that bundles of different ones can live in one process (MONAI Label
    serves all its bundles from one) and bundles of the same share their code.
    """
    return f"{PACKAGE}_{re.sub(r'[^0-9A-Za-z]', '_', version)}"


def config_modules(configs: Iterable[str], package: str = PACKAGE) -> set[str]:
    """Modules of this package that configs name.

    Args:
        configs: texts of rendered configs.
        package: the name that they have for this package.

    Returns:
        Dotted names under this package's own name; behind a module there may be a class's name.
    """
    text = "\n".join(configs)
    named = re.findall(rf"\b{package}\.([A-Za-z_]\w*(?:\.\w+)*)", text)
    looked_up = re.findall(r"@code\('([\w.]+)'\)", text)
    return {f"{PACKAGE}.{name}" for name in (*named, *looked_up)}


def vendored_files(package: str, roots: Collection[str]) -> dict[str, str]:
    """Modules and all that they import of this package, renamed.

    Args:
        package: the new name, one identifier, as from :func:`vendored_name`.
        roots: dotted names under this package's own name, as from :func:`config_modules`.

    Returns:
        Texts by path, such as ``mod_components_0_1_0/losses.py``, sorted; the same for the same
        roots.

    Raises:
        SettingsError: when a root is no module of this package, or needs a part of it that belongs
            into no bundle.
    """
    waiting = [_module(root) for root in sorted(roots)]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        if name in found:
            continue
        if name in _NEVER or name.startswith(tuple(f"{never}." for never in _NEVER)):
            raise SettingsError(f"{name} belongs into no bundle, and what is packed imports it.")
        found[name] = _read(name)[1]
        waiting += sorted(_imports(name))
    files = {_read(name)[0]: _renamed(text, package) for name, text in found.items()}
    return {f"{package}/{path}": files[path] for path in sorted(files)}


def _module(root: str) -> str:
    """The module that a dotted name starts with."""
    name = root
    while name.count(".") and not _exists(name):
        name = name.rpartition(".")[0]
    if not _exists(name) or (name == PACKAGE and root != PACKAGE):
        raise SettingsError(f"{root} is no module of {PACKAGE}: correct the config that names it.")
    return name


def _candidates(name: str) -> list[str]:
    path = name.replace(".", "/").removeprefix(PACKAGE).lstrip("/")
    return [f"{path}/__init__.py".lstrip("/"), *([f"{path}.py"] if path else [])]


def _exists(name: str) -> bool:
    ours = name == PACKAGE or name.startswith(f"{PACKAGE}.")
    source = resources.files(PACKAGE)
    return ours and any(source.joinpath(path).is_file() for path in _candidates(name))


def _read(name: str) -> tuple[str, str]:
    """Path inside the package, and text, of a module that exists."""
    source = resources.files(PACKAGE)
    path = next(path for path in _candidates(name) if source.joinpath(path).is_file())
    return path, source.joinpath(path).read_text(encoding="utf-8")


def _imports(name: str) -> set[str]:
    """Modules of this package that a module imports anywhere, inside functions too."""
    path, text = _read(name)
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # what is imported from a package may be a module or a name in its __init__
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return {name for name in names if _exists(name)}


def _renamed(text: str, package: str) -> str:
    """The text with this package's name changed wherever it means the package."""
    starts = [0]
    for line in io.StringIO(text):
        starts.append(starts[-1] + len(line))
    pieces, done = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.type == tokenize.NAME and token.string == PACKAGE:
            new = package
        elif token.type in _STRINGS:
            new = _IN_STRING.sub(package, text[begin:end])
        else:
            continue
        pieces += [text[done:begin], new]
        done = end
    return "".join(pieces) + text[done:]
