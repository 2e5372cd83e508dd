"""What a training left behind, without what it tells of the machine and of patients."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from mod_components.release.provenance import figures
from mod_components.release.trained import own_name, packed_name

__all__ = ["cleaned", "datalist_without_paths", "without_case_ids", "without_paths"]

_OPTION = re.compile(r"(--?[\w#.\-]+=)?(.*)", re.DOTALL)
_DRIVE = re.compile(r"\s*[A-Za-z]:(?![:\s])")
_HOME = re.compile(r"\s*~[^/\\]*$")
_QUOTES = " \t\r\n'\"()[]{},;"
# a path inside the data set
_INSIDE = re.compile(r"[^/\\~$%:][^/\\$%:]*(/[^/\\:]+)*")


def cleaned(training: Mapping[str, Any], package: str) -> dict[str, Any]:
    """``training.json`` as a packed bundle holds it.

    Args:
        training: its content.
        package: the name of this package's copy in the bundle.

    Returns:
        The same without paths of the machine and figures that are no numbers, and with the
        network's class under its new name.
    """
    content = {**training}
    command = [str(word) for word in content.get("command", [])]
    if command and (re.search(r"[/\\]", command[0]) or command[0].endswith(".py")):
        content["command"] = command[1:]  # the first is the interpreter's script
    if "metrics" in content:
        content["metrics"] = figures(content)
    content = dict(without_paths(content))
    network = content["settings"].get("network")
    if network:
        target = packed_name(own_name(network["target"]), package)
        content["settings"]["network"] = {**network, "target": target}
    return content


def without_paths(node: Any) -> Any:
    """JSON content in which its last part stands for everything that could be a path.

    What only looks like a path is cut too: rather that than a person's name in a folder's.

    Args:
        node: the content; the values of options (``--key=value``) and of lists and dictionaries
            that are written out in a word are cut one by one.
    """
    if isinstance(node, Mapping):
        return {key: without_paths(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_paths(item) for item in node]
    if not isinstance(node, str):
        return node
    option, value = _OPTION.fullmatch(node).groups(default="")  # type: ignore[union-attr]
    return option + _last_part(value)


def datalist_without_paths(datalist: Mapping[str, Any]) -> dict[str, Any]:
    """``datalist.json`` with its cases' ids and the paths inside the data set, and no other.

    Args:
        datalist: its content.
    """
    return {
        key: value
        if key in ("left_out", "seen_unlabelled")
        else [_case_without_paths(case) for case in value]
        if key in ("training", "validation", "unlabelled") and isinstance(value, list)
        else without_paths(value)
        for key, value in datalist.items()
    }


def without_case_ids(postprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """``postprocessing.json`` with the number of the cases that it was chosen on, not their ids.

    Args:
        postprocessing: its content.

    Raises:
        ValueError: when it is not as ``tune`` writes it.
    """
    chosen = postprocessing.get("chosen_on", {})
    if not isinstance(chosen, dict) or not all(
        isinstance(found, dict) and isinstance(found.get("cases", []), list)
        for found in chosen.values()
    ):
        raise ValueError("its chosen_on names no lists of cases")
    counted = {
        which: {
            **found,
            "cases": [],
            # of a bundle that was packed before
            "number_of_cases": len(found.get("cases", [])) or found.get("number_of_cases", 0),
        }
        for which, found in chosen.items()
    }
    return {**postprocessing, "chosen_on": counted}


def _case_without_paths(node: Any) -> Any:
    if isinstance(node, Mapping):  # an id is what the data set's own files are named by
        return {k: v if k == "case" else _case_without_paths(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_case_without_paths(item) for item in node]
    inside = isinstance(node, str) and _INSIDE.fullmatch(node) and ".." not in node.split("/")
    return node if inside else without_paths(node)


def _last_part(text: str) -> str:
    if not re.search(r"[/\\]", text):
        return _DRIVE.sub("", _HOME.sub("", text))
    try:
        written = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        written = None
    if isinstance(written, (list, tuple, dict)):
        return str(without_paths(written))
    last = re.split(r"[/\\]+", text.rstrip(_QUOTES + "/\\"))[-1]
    return _DRIVE.sub("", _HOME.sub("", last)).strip(_QUOTES)
