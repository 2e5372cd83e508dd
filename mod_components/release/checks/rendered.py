"""Whether a bundle's texts are, letter for letter, those that this release renders.

A config is a program, and no list of what it must not do is complete. What equals this release's
own rendering does what this release does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from mod_components.errors import CheckpointError
from mod_components.files import DATALIST
from mod_components.release.card import CURVES, card_values, metadata_values
from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.checks.record import RECORD, short_name
from mod_components.release.render import backbones, render_bundle
from mod_components.release.trained import trained_row
from mod_components.release.vendor import vendored_name

__all__ = ["CARD", "PARAMETERS", "check_rendered"]

CARD = "docs/README.md"
CURVES_FILE = f"docs/{CURVES}"
SHARED = ("LICENSE", "configs/logging.conf")  # the same in all bundles
PARAMETERS = re.compile(r"\((\d{1,5}\.\d M) parameters\)")
HEADINGS = (
    *("Model overview", "Data", "Training configuration", "Input", "Output", "Performance"),
    *("References", "License"),
)


def check_rendered(bundle: Bundle, reported: Collection[str] = ()) -> list[Problem]:
    """Compare all configs and texts with what this release renders for this training.

    Args:
        bundle: the bundle; the checks that read it as data, its record's above all, have run.
        reported: files in which something is wrong already. They get no second line, and with
            the record among them nothing is rendered from it.
    """
    if RECORD in reported or bundle.package not in ("", vendored_name()):
        return []
    if not short_name(bundle):
        return _of_another_name(bundle, reported)
    try:
        expected = _expected(bundle)
    except CheckpointError as error:
        message = str(error).removeprefix(f"{bundle.folder / RECORD}: ")
        return [Problem("record", RECORD, message)]
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        message = f"does not tell of a training as this release writes it ({error!r}); train again"
        return [Problem("record", RECORD, message)]
    problems = [*_compared(bundle, expected, reported), *_surplus(bundle, expected, reported)]
    if bundle.object(RECORD).get("curves") and CURVES_FILE not in bundle.entries and bundle.package:
        message = "is missing, and the card shows it; pack the bundle anew"
        problems.append(Problem("missing", CURVES_FILE, message))
    return problems


def _expected(bundle: Bundle) -> dict[str, str]:
    """The bundle's texts as packing it anew, or rendering the repository anew, would write them."""
    short = short_name(bundle)
    if not bundle.package and not bundle.packed:
        return render_bundle(short)
    training = bundle.object(RECORD)
    row = trained_row(backbones()[short], training["settings"], bundle.folder / RECORD)
    if count := PARAMETERS.search(bundle.texts.get(CARD, "")):
        row["parameters"] = count[1]  # compared with the network once that is built
    package = vendored_name()
    with_datalist = f"models/{DATALIST}" in bundle.entries
    values = {
        **card_values(training, row, package=package, with_datalist=with_datalist),
        **metadata_values(training, row),
    }
    return render_bundle(short, {short: row}, package=package, values=values)


def _compared(
    bundle: Bundle, expected: dict[str, str], reported: Collection[str]
) -> Iterator[Problem]:
    if bundle.package or bundle.packed:
        what, mend = "this release renders for this training", "pack the bundle anew"
    else:
        what, mend = "this release renders", "run 'python -m mod_components render'"
    for path, text in expected.items():
        if path in reported:
            continue
        if path not in bundle.entries:
            yield Problem("missing", path, f"is missing; {mend}")
        elif bundle.texts.get(path) != text:
            where = _first_difference(bundle, path, text)
            yield Problem("rendered", path, f"is not what {what}, first at {where}; {mend}")


def _surplus(
    bundle: Bundle, expected: dict[str, str], reported: Collection[str]
) -> Iterator[Problem]:
    for path in bundle.entries:
        own = re.fullmatch(r"configs/\w+\.(json|conf)", path)  # others are reported as such
        if own and path not in (*expected, *reported):
            yield Problem("unexpected", path, "is no config of this bundle; leave it out")


def _of_another_name(bundle: Bundle, reported: Collection[str]) -> list[Problem]:
    """Without a row to render from: what all bundles share, and the form of the rest."""
    texts = render_bundle(next(iter(backbones())))
    shared = {path: texts[path] for path in SHARED}
    problems = [*_compared(bundle, shared, reported)]
    for path in sorted({CARD, "docs/data_license.txt"} & {*bundle.texts} - {*reported}):
        if not bundle.texts[path].strip():
            problems.append(Problem("rendered", path, "is empty; fill it in"))
    card = bundle.texts.get(CARD, "")
    if card.strip() and (missing := _missing_heading(card)):
        message = f"lacks the heading {missing!r} in its place; follow the order of the Model Zoo's"
        problems.append(Problem("rendered", CARD, f"{message}: {', '.join(HEADINGS)}"))
    return problems


def _missing_heading(card: str) -> str:
    plain = re.sub(r"^```.*?^```", "", card, flags=re.M | re.S)  # comments in commands
    found = iter(line.strip() for line in re.findall(r"^#+ (.*)", plain, flags=re.M))
    return next((heading for heading in HEADINGS if heading not in found), "")


def _first_difference(bundle: Bundle, path: str, text: str) -> str:
    document = bundle.documents.get(path)
    if document is not None and (where := _differs(document, json.loads(text))):
        return repr(where)
    found, expected = bundle.texts.get(path, "").splitlines(), text.splitlines()
    same = next(
        (at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    return f"line {same + 1}"


def _differs(found: Any, expected: Any, name: str = "") -> str:
    """Id of the first entry that differs; empty when only the writing does."""
    if type(found) is not type(expected) or not isinstance(found, (dict, list)):
        return "" if found == expected and type(found) is type(expected) else name or "its top"
    if isinstance(found, list):
        found, expected = dict(enumerate(found)), dict(enumerate(expected))
    for key in [*expected, *(key for key in found if key not in expected)]:
        inner = f"{name}#{key}" if name else str(key)
        if key not in found or key not in expected:
            return inner
        if where := _differs(found[key], expected[key], inner):
            return where
    return ""
