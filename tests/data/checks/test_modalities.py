"""Modalities that changed places: found where they did, and never where they did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mod_components.data import CHANNELS, CaseRecord, find_layout, make_sample, scan
from mod_components.data.checks.case import Case
from mod_components.data.checks.modalities import modality_order


def suspects(root: Path, *, exchange: tuple[str, str] | None = None, labelled: bool = True) -> int:
    """Number of cases with a warning, after two modalities of each were exchanged."""
    layout = find_layout(root)
    order = list(CHANNELS)
    if exchange:
        i, j = (CHANNELS.index(name) for name in exchange)
        order[i], order[j] = order[j], order[i]

    def exchanged(record: CaseRecord) -> CaseRecord:
        images = tuple(record.images[CHANNELS.index(name)] for name in order)
        return replace(record, images=images, label=record.label if labelled else None)

    return sum(bool([*modality_order(Case(exchanged(r), layout))]) for r in scan(root))


@pytest.mark.parametrize("labelled", [True, False])
def test_sample(tmp_path_factory: pytest.TempPathFactory, labelled: bool) -> None:
    root = make_sample(tmp_path_factory.getbasetemp() / "sample16", cases=16)
    assert suspects(root, labelled=labelled) == 0
    assert suspects(root, exchange=("T1ce", "T1"), labelled=labelled) >= 15
    assert suspects(root, exchange=("T2", "FLAIR"), labelled=labelled) == 16


@pytest.mark.real_data
@pytest.mark.parametrize(("labelled", "found"), [(True, 43), (False, 44)])
def test_real_cases(real_data: Path, labelled: bool, found: int) -> None:
    root = real_data / "brats2018_2mm"
    assert suspects(root, labelled=labelled) == 0
    assert suspects(root, exchange=("T1ce", "T1"), labelled=labelled) >= found
    assert suspects(root, exchange=("T2", "FLAIR"), labelled=labelled) == 45
