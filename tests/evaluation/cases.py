"""A small brain with a tumour, and the files that an evaluation leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

SHAPE = (24, 30, 20)


def brain(name: str = "case_0", tumour: bool = True, spacing: float = 1.0) -> dict[str, Any]:
    """An LPS brain that fills the middle, with a tumour in its left anterior upper part."""
    image = torch.zeros(4, *SHAPE)
    image[:, 4:20, 4:26, 3:17] = torch.rand(4, 16, 22, 14) + 0.5
    label = torch.zeros(3, *SHAPE)
    if tumour:
        label[1, 12:18, 5:13, 8:14] = 1
        label[0, 13:17, 6:12, 9:13] = 1
        label[2, 14:16, 7:11, 10:12] = 1
    affine = torch.diag(torch.tensor([-1.0, -1.0, spacing, 1.0]))
    return {
        "case": name,
        "image": MetaTensor(image, affine=affine),
        "label": MetaTensor(label, affine=affine),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_evaluation(
    folder: Path, dices: Mapping[str, tuple[float, float, float]], notes: Mapping[str, Any]
) -> Path:
    """Cases with the given Dice of TC, WT, ET, a distance of 2.5 mm and no sensitivity of ET."""
    rows = [
        {
            "case": case,
            **dict(zip(("dice_tc", "dice_wt", "dice_et"), values, strict=True)),
            **{f"hd95_{region}": 2.5 for region in ("tc", "wt", "et")},
            **{"sensitivity_tc": 0.25, "sensitivity_wt": 0.75, "sensitivity_et": ""},
        }
        for case, values in dices.items()
    ]
    write_rows(folder / "metrics_per_case.csv", rows)
    summary = [
        {
            **{"region": region, "n": len(rows)},
            **{"dice_mean": 0.5, "dice_std": 0.125, "dice_median": 0.4375},
            **{"dice_ci_low": 0.3, "dice_ci_high": 0.7},
            **{"hd95_mean": 2.5, "hd95_std": 0, "hd95_median": 2.5},
            **{"sensitivity_mean": "" if region == "ET" else 0.5, "sensitivity_n": 1},
        }
        for region in ("TC", "WT", "ET", "mean")
    ]
    write_rows(folder / "metrics_summary.csv", summary)
    (folder / "summary.json").write_text(json.dumps({"cases": len(rows), "notes": dict(notes)}))
    return folder
