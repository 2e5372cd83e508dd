"""The files and the table that an evaluation leaves, from one process and from two."""

from __future__ import annotations

import csv
import json
import logging
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from mod_components.evaluation.compare import compare
from mod_components.evaluation.scores import METRICS, score_case
from mod_components.handlers.reports import EvaluationReport
from mod_components.metrics import HD95_MISSED, dice, hd95

SPACING = (1.0, 1.0, 2.5)
PER_CASE = ["case", "dice_tc", "dice_wt", "dice_et", "hd95_tc", "hd95_wt", "hd95_et"]
STATISTICS = ("mean", "std", "median", "ci_low", "ci_high")


def cases(count: int = 3) -> list[dict]:
    """Cases whose image is the prediction; the first one misses its ET."""
    generator = torch.Generator().manual_seed(5)
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    made = []
    for i in range(count):
        label = (torch.rand(3, 8, 7, 6, generator=generator) > 0.7).float()
        pred = label.roll(i + 1, dims=1)
        if i == 0:
            pred[2] = 0
        made.append(
            {
                "case": f"case_{i}",
                "image": MetaTensor(pred, affine=affine),
                "label": MetaTensor(label, affine=affine),
            }
        )
    return made


def evaluate(report: EvaluationReport, data: list[dict], **settings: object) -> None:
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=torch.nn.Identity(),
        val_handlers=[report],
        **settings,
    ).run()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_has_a_row(tmp_path: Path) -> None:
    data = cases()
    evaluate(EvaluationReport(tmp_path / "new" / "folder"), data)
    rows = read(tmp_path / "new" / "folder" / "metrics_per_case.csv")
    assert list(rows[0])[:7] == PER_CASE
    assert [row["case"] for row in rows] == ["case_0", "case_1", "case_2"]
    for row, case in zip(rows, data, strict=True):
        pred, label = case["image"], case["label"]
        expected = [*dice(pred, label).tolist(), *hd95(pred, label, SPACING).tolist()]
        assert [float(row[name]) for name in PER_CASE[1:]] == pytest.approx(expected, rel=1e-5)
        scores = score_case(pred, label, SPACING)
        assert list(row) == ["case", *scores]
        for name, value in scores.items():
            assert float(row[name] or "nan") == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert rows[0]["dice_et"] == "0"
    assert rows[0]["hd95_et"] == str(HD95_MISSED)


def test_the_summary_is_of_the_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = {"best FLAIR threshold, Dice WT": 0.4567891, "data": "sample"}
    with caplog.at_level(logging.INFO, logger="mod_components.evaluation"):
        evaluate(EvaluationReport(tmp_path, notes), cases())
    per_case = read(tmp_path / "metrics_per_case.csv")
    values = np.array([[float(row[name]) for name in PER_CASE[1:]] for row in per_case])
    rows = {row["region"]: row for row in read(tmp_path / "metrics_summary.csv")}
    assert list(rows) == ["TC", "WT", "ET", "mean"]
    columns_of = [f"dice_{s}" for s in STATISTICS] + [f"hd95_{s}" for s in STATISTICS]
    assert list(rows["TC"])[1:12] == ["n", *columns_of]
    assert {f"{metric.key}_mean" for metric in METRICS} <= set(rows["TC"])
    for start, metric in ((0, "dice"), (3, "hd95")):
        regions = values[:, start : start + 3]
        columns = dict(zip(("TC", "WT", "ET"), regions.T, strict=True))
        columns["mean"] = regions.mean(1)
        for region, column in columns.items():
            got = [float(rows[region][f"{metric}_{s}"]) for s in ("mean", "std", "median")]
            expected = [column.mean(), column.std(), np.median(column)]
            assert got == pytest.approx(expected, rel=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == 3
    assert summary["notes"] == notes
    assert summary["regions"]["ET"]["hd95_mean"] == pytest.approx(float(rows["ET"]["hd95_mean"]))
    text = caplog.records[-1].message
    assert "3 cases" in text
    assert "best FLAIR threshold, Dice WT: 0.456789" in text
    assert f"{float(rows['mean']['dice_mean']):.4f}" in text


def test_what_is_not_defined_is_empty_and_null(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = {"best": float("nan"), "worst": float("-inf"), "post-processing": True}
    with caplog.at_level(logging.INFO, logger="mod_components.evaluation"):
        evaluate(
            EvaluationReport(tmp_path, notes), cases(1)
        )  # ET is missed: its precision is not defined
    (row,) = read(tmp_path / "metrics_per_case.csv")
    assert (row["sensitivity_et"], row["precision_et"]) == ("0", "")
    rows = {row["region"]: row for row in read(tmp_path / "metrics_summary.csv")}
    assert (rows["ET"]["precision_n"], rows["ET"]["precision_mean"]) == ("0", "")
    assert rows["WT"]["dice_std"] == "0"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "summary.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["notes"] == {"best": None, "worst": None, "post-processing": True}
    assert "post-processing: yes" in caplog.records[-1].message
    regions = content["regions"]
    assert regions["ET"]["precision_mean"] is None
    assert regions["mean"]["precision_ci_low"] is None


def test_two_reports_can_be_compared(tmp_path: Path) -> None:
    evaluate(EvaluationReport(tmp_path / "a"), cases(3))
    evaluate(EvaluationReport(tmp_path / "b"), cases(2))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.cases, found.only_a) == (("case_0", "case_1"), ("case_2",))
    assert [d.difference for d in found.differences] == [0] * 16


def test_a_second_evaluation_starts_from_nothing(tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path)
    evaluate(report, cases(3))
    report._rows["stale"] = {}
    evaluate(report, cases(2))
    assert len(read(tmp_path / "metrics_per_case.csv")) == 2


def test_a_case_dealt_out_twice_counts_once(tmp_path: Path) -> None:
    data = cases(3)
    evaluate(EvaluationReport(tmp_path), [*data, data[0]])
    assert [row["n"] for row in read(tmp_path / "metrics_summary.csv")] == ["3"] * 4


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    data = cases(1)
    with pytest.raises(ValueError, match=r"pred of case_0 must be \(3, D, H, W\)"):
        evaluate(
            EvaluationReport(tmp_path),
            data,
            postprocessing=lambda item: {**item, "pred": item["pred"][:1]},
        )
    with pytest.raises(TypeError, match="decollate=True"):
        evaluate(EvaluationReport(tmp_path), data, decollate=False)
    del data[0]["case"]
    with pytest.raises(KeyError, match="case's id"):
        evaluate(EvaluationReport(tmp_path), data)


def _one_of_two(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    data = cases(3)
    mine = [data[0], data[2]] if rank == 0 else [data[1], data[0]]  # padded with the first
    evaluate(EvaluationReport(folder), mine)
    torch.distributed.destroy_process_group()


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path / "two")), nprocs=2)
    evaluate(EvaluationReport(tmp_path / "one"), cases(3))
    for name in ("metrics_per_case.csv", "metrics_summary.csv", "summary.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
