"""The paper's own figures, to stand beside a study's with what keeps them from being compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from mod_components.study.tables import FIGURES, SCORE_HEADER, Table, show

__all__ = ["caveats", "published_tables"]


def published_tables(networks: Iterable[str], counts: bool, probes: bool) -> list[Table]:
    """What the paper reports of some networks.

    Args:
        networks: names of the networks.
        counts: whether its figures by number of labelled cases are wanted.
        probes: whether its linear probes are wanted.

    Returns:
        Tables that have a line; none for networks that the paper does not have.
    """
    content, wanted = _content(), set(networks)
    note = f'From "{content["source"]}"; one run each.'

    def lines(key: str) -> list[dict[str, Any]]:
        return [line for line in content[key] if line["network"] in wanted]

    tables = [_scores("published", "Published: Tables I and II", note, lines("scores"))]
    if counts:
        tables.append(_counts(note, lines("labelled_cases")))
    if probes:
        title = "Published: Table III, linear probes"
        tables.append(_scores("published_probes", title, note, lines("probes")))
    return [table for table in tables if table.rows]


def caveats() -> list[str]:
    """Why the published figures and a study's can't be compared, point by point."""
    return [str(text) for text in _content()["caveats"]]


def _scores(name: str, title: str, note: str, lines: list[dict[str, Any]]) -> Table:
    cells = [
        [line["network"], line["arm"], line["table"], *(show(line[f]) for f in FIGURES)]
        for line in lines
    ]
    header = ["network", "arm", "table", *SCORE_HEADER]
    return Table(name, title, f"{note} Dice in %, HD95 in mm.", header, cells, lines)


def _counts(note: str, lines: list[dict[str, Any]]) -> Table:
    counts = ("100", "200", "500")
    cells = [[line["network"], line["arm"], *(show(line[n], 0) for n in counts)] for line in lines]
    title = "Published: Dice (%) by number of labelled cases"
    header = ["network", "arm", *counts]
    return Table("published_labelled_cases", title, note, header, cells, lines)


def _content() -> dict[str, Any]:
    source = resources.files("mod_components.study").joinpath("published.json")
    return dict(json.loads(source.read_text(encoding="utf-8")))
