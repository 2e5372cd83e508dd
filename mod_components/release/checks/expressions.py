"""What a config's expressions and imports may name; read as text, never evaluated."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Collection, Iterator

from monai.bundle.reference_resolver import ReferenceResolver

__all__ = ["expression_problems", "imported_modules", "references"]

# of the standard library: what starts programs, opens connections or loads code as data
REFUSED_MODULES = {
    *(
        "builtins",
        "code",
        "codeop",
        "ctypes",
        "dbm",
        "ftplib",
        "http",
        "marshal",
        "multiprocessing",
    ),
    *("pickle", "poplib", "pty", "runpy", "shelve", "shutil", "smtplib", "socket", "socketserver"),
    *("subprocess", "telnetlib", "urllib", "webbrowser", "xmlrpc", "zipimport"),
}
REFUSED_NAMES = re.compile(
    r"system|popen\w*|Popen|exec\w*|spawn\w*|fork\w*|kill\w*|__import__|breakpoint"
    r"|rmtree|unlink|remove|removedirs|rmdir|rename|renames|chmod|chown|symlink\w*|truncate"
    r"|write_text|write_bytes|urlopen|urlretrieve|download_url|load_library|hub|cpp_extension"
    r"|__subclasses__|__globals__|__builtins__|__code__|__bases__|__mro__|__reduce\w*|__loader__"
)
REFUSED_BUILTINS = {"eval", "compile", "open", "input", "globals", "vars", "delattr"}
ALWAYS = {"monai", "torch", "numpy", "ignite"}


def imported_modules(text: str) -> list[tuple[str, str]] | None:
    """Modules that an expression imports.

    Args:
        text: a string of a config.

    Returns:
        Module and name in it, or module and ``""``; None when it is no import.
    """
    if not re.match(r"\$\s*(import|from)\s", text):
        return None
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(text.lstrip("$ "))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return found


def refused_import(module: str, packages: Collection[str] | None) -> bool:
    """Whether a config may not import a module.

    Args:
        module: its dotted name.
        packages: top packages that are allowed besides the standard library, MONAI, torch, NumPy
            and Ignite; None where nobody can tell them.
    """
    top = module.partition(".")[0]
    if top in ALWAYS or (packages is not None and top in packages):
        return False
    foreign = top not in sys.stdlib_module_names and packages is not None
    return foreign or top in REFUSED_MODULES


def expression_problems(text: str) -> Iterator[str]:
    """Find expressions that are no Python, run programs or touch files, as none of ours does.

    It goes by names, so that it finds mistakes and plain attacks, not a clever one: an expression
    is code, and running a bundle is running its author's code.

    Args:
        text: an expression with its "$".
    """
    known: dict[str, object] = dict.fromkeys(references(text))
    source = ReferenceResolver.update_refs_pattern(value=text, refs=known)[1:].strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield f"is no Python ({type(error).__name__})"
        return
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Name):
            name = node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value if node.value.startswith("__") else ""
        builtin = isinstance(node, ast.Name) and name in REFUSED_BUILTINS
        if builtin or REFUSED_NAMES.fullmatch(name):
            yield f"uses {name}, which no bundle needs"


def references(text: str) -> set[str]:
    """Ids that a string of a config refers to.

    Args:
        text: the string.
    """
    if not text.startswith(("$", "@")):
        return set()
    return set(ReferenceResolver.match_refs_pattern(value=text))
