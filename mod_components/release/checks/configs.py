"""The configs of a bundle, read and never evaluated."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from mod_components.release.checks.bundle import Bundle, Problem, strings
from mod_components.release.checks.code import PACKAGE, names_code
from mod_components.release.checks.expressions import (
    expression_problems,
    imported_modules,
    references,
    refused_import,
)
from mod_components.release.checks.metadata import METADATA

__all__ = ["INFERENCE", "TRAIN", "check_configs"]

TRAIN, INFERENCE, EVALUATE = (f"configs/{name}.json" for name in ("train", "inference", "evaluate"))
# what MONAI Label reads besides the properties that MONAI requires
FOR_LABEL = {
    TRAIN: (
        *("network", "network_def", "train#dataset#data", "train#handlers", "validate#evaluator"),
        *("train#preprocessing", "validate#dataset#data", "validate#preprocessing"),
    ),
    INFERENCE: ("network", "dataset#data", "preprocessing", "postprocessing", "handlers"),
}
PACKAGES = {"monai", "torch", "ignite"}
IMPORT_NAMES = {"pytorch-ignite": "ignite", "scikit-image": "skimage", "pillow": "PIL"}
# they fetch or load what nobody has checked
REFUSED_TARGETS = re.compile(
    r"torch\.(hub|jit|load|package|serialization|ops|classes|_\w+|multiprocessing"
    r"|utils\.(cpp_extension|_\w+|model_zoo))\b.*|monai\.(bundle|apps|_\w+)\b.*|.*\.__\w+__.*"
)


def check_configs(bundle: Bundle) -> list[Problem]:
    """Find ids that MONAI or MONAI Label need and do not find, and code from elsewhere.

    Args:
        bundle: the bundle.
    """
    problems = []
    for path in bundle.documents:
        if re.fullmatch(r"configs/\w+\.json", path) and path != METADATA:
            config = bundle.documents[path]
            if isinstance(config, dict):
                found = [*_config(bundle, path, config)]
            else:
                found = ["is no object; write a config of MONAI's"]
            problems += [Problem("config", path, message) for message in dict.fromkeys(found)]
    return problems


def _config(bundle: Bundle, path: str, config: dict[str, Any]) -> Iterator[str]:
    parser = ConfigParser(copy.deepcopy(config))  # which it changes
    macros = [name for name, text in strings(config) if text.startswith("%")]
    if macros:
        yield f"{macros[0]!r} is a macro, which depends on the folder; write out what it names"
    else:
        try:
            parser.parse()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            yield f"MONAI can't parse it ({error}); correct it"
            return
    yield from _targets(bundle, config)
    yield from _expressions(bundle, config)
    missing = _missing(path, parser) if path in FOR_LABEL else []
    for name in missing:
        yield f"'{name}' is missing, which MONAI and MONAI Label look for; add it"
    if path in (TRAIN, INFERENCE, EVALUATE):
        yield from _dangling(parser, config, [name.replace("#", "::") for name in missing])
    if path == TRAIN and "train::handlers" in parser:
        yield from _handlers(parser["train::handlers"])


def _targets(bundle: Bundle, config: dict[str, Any]) -> Iterator[str]:
    for where, target in _components(config):
        if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", target):
            yield f"'{where}' has {target!r} for '_target_'; give the plain name of a class"
            continue
        top = target.partition(".")[0]
        if "." not in target:
            if target not in _monai_names():
                yield f"'{where}' names {target}, which MONAI has not; correct the name"
        elif REFUSED_TARGETS.fullmatch(target):
            yield f"'{where}' names {target}, which loads what nobody has checked; leave it out"
        elif PACKAGE.fullmatch(top):
            if problem := names_code(bundle, target):
                yield f"'{where}' names {target}, {problem}"
        elif top not in PACKAGES:
            yield (
                f"'{where}' names {target}, code from outside MONAI, torch, Ignite and the bundle; "
                "leave it out"
            )


def _components(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Id and ``_target_`` of all components."""
    if isinstance(node, dict) and "_target_" in node:
        yield name, node["_target_"]
    children: Any = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        yield from _components(child, f"{name}#{key}" if name else str(key))


@cache
def _monai_names() -> frozenset[str]:
    """Classes and functions that MONAI finds by a bare name."""
    locator = ComponentLocator()
    locator.get_component_module_name("Compose")  # fills its table
    return frozenset(locator._components_table or {})


def _expressions(bundle: Bundle, config: dict[str, Any]) -> Iterator[str]:
    packages = bundle.object(METADATA).get("required_packages_version")
    allowed = None  # unreadable metadata are reported, and not each import that needs them
    if METADATA in bundle.documents:
        names = packages if isinstance(packages, dict) else {}
        allowed = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    for where, text in strings(config):
        if not text.startswith("$"):
            continue
        try:
            imports = imported_modules(text)
        except SyntaxError:
            yield f"'{where}' is no valid import; correct it"
            continue
        if imports is None:
            for problem in expression_problems(text):
                yield f"'{where}' {problem}; leave it out"
            for name in _own_names(bundle, text):
                if problem := names_code(bundle, name):
                    yield f"'{where}' names {name}, {problem}"
            continue
        for module, name in imports:
            if PACKAGE.fullmatch(module.partition(".")[0]):
                dotted = f"{module}.{name}" if name else module
                if problem := names_code(bundle, dotted):
                    yield f"'{where}' imports {dotted}, {problem}"
            elif refused_import(module, allowed):
                yield (
                    f"'{where}' imports {module}, which is not of the standard library's harmless "
                    "part, MONAI's or in 'required_packages_version'; leave it out"
                )


def _own_names(bundle: Bundle, text: str) -> list[str]:
    """Modules of ours that an expression names in full, or asks the config's ``code`` for."""
    package = bundle.package or "mod_components"
    return [
        *re.findall(r"\bmod_components(?:_\d\w*)?\.[a-z_][\w.]*", text),
        *(f"{package}.{name}" for name in re.findall(r"@code\('([\w.]+)'\)", text)),
    ]


def _dangling(parser: ConfigParser, config: dict[str, Any], missing: list[str]) -> Iterator[str]:
    """References to what is not there, and is not reported as missing."""
    for where, text in strings(config):
        for reference in sorted(references(text)):
            if reference not in parser and reference not in missing:
                yield f"'{where}' refers to @{reference}, which the config has not; correct the id"


def _missing(path: str, parser: ConfigParser) -> list[str]:
    properties: Any = TrainProperties if path == TRAIN else InferProperties
    ids = [
        str(facts[BundlePropertyConfig.ID]).replace("::", "#")
        for facts in properties.values()
        if facts[BundleProperty.REQUIRED]
    ]
    names = dict.fromkeys([*ids, *FOR_LABEL[path]])
    return [name for name in names if name.replace("#", "::") not in parser]


def _handlers(handlers: Any) -> Iterator[str]:
    if not isinstance(handlers, list) or not all(isinstance(item, dict) for item in handlers):
        yield "'train#handlers' is no list of objects, as MONAI's check needs; write it as one"
    elif not any("Checkpoint" in str(item.get("_target_")) for item in handlers):
        yield "'train#handlers' has nothing that saves the network; add a checkpoint handler"
