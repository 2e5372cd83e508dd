"""The HTML report of an evaluation: whose pictures it holds, and how they are turned."""

from __future__ import annotations

import base64
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd, Orientationd

from mod_components.errors import DataError
from mod_components.handlers import EvaluationReport, html_report
from mod_components.handlers.html_report import HTMLReport
from tests.evaluation.cases import SHAPE, brain

# How far each case's prediction is off, in voxels: "far" is the worst.
SHIFTS = {"near": 1, "far": 5, "exact": 0, "middle": 3, "further": 4, "close": 2}
WORST_FIRST = ["far", "further", "middle", "close", "near", "exact"]


def cases(names: list[str] | None = None) -> list[dict[str, Any]]:
    return [brain(name) | {"shift": SHIFTS[name]} for name in names or SHIFTS]


def predict(item: dict[str, Any]) -> dict[str, Any]:
    pred = item["label"].roll(item["shift"], dims=1)
    return {**item, "pred": MetaTensor(pred.as_tensor(), affine=item["label"].affine)}


def evaluate(
    folder: Path | str, data: list[dict[str, Any]] | Dataset, handler: HTMLReport, **settings: Any
) -> None:
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            data if isinstance(data, Dataset) else Dataset(data), batch_size=2
        ),
        val_handlers=[EvaluationReport(folder), handler],
        **{"network": torch.nn.Identity(), "postprocessing": predict, **settings},
    ).run()


def shown(folder: Path) -> dict[str, bytes]:
    """The pictures of the report by case, in its order."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r"<h3>\d+\. (\w+), .*?<img src=\"data:image/jpeg;base64,(.*?)\"", text, re.S)
    return {case: base64.b64decode(data) for case, data in found}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[torch.Tensor, ...]]:
    """Image, prediction and label of every case that is drawn."""
    calls: dict[str, tuple[torch.Tensor, ...]] = {}
    real = html_report.draw_case

    def spy(*volumes: torch.Tensor, title: str) -> Figure:
        calls[title] = volumes
        return real(*volumes, title=title)

    monkeypatch.setattr(html_report, "draw_case", spy)
    return calls


def test_the_worst_cases_are_shown(tmp_path: Path, drawn: dict) -> None:
    handler = HTMLReport(tmp_path, pictures=3, title="My trial")
    evaluate(tmp_path, cases(), handler)
    assert list(shown(tmp_path)) == WORST_FIRST[:3]
    assert "<h1>My trial</h1>" in (tmp_path / "report.html").read_text()
    assert all(picture.startswith(b"\xff\xd8\xff") for picture in shown(tmp_path).values())
    assert all(len(picture) < 150_000 for picture in shown(tmp_path).values())
    # "close" comes last and was never among the three worst
    assert list(drawn) == ["near", "far", "exact", "middle", "further"]
    assert handler._worst == {}  # nothing is kept when it is over


def test_no_more_pictures_are_kept_than_shown(tmp_path: Path) -> None:
    handler = HTMLReport(tmp_path, pictures=2)
    kept = []
    draw = handler._consider

    def spy(case: str, item: dict[str, Any]) -> None:
        draw(case, item)
        kept.append(sorted(handler._worst))

    handler._consider = spy  # type: ignore[method-assign]
    evaluate(tmp_path, cases(), handler)
    assert kept[2:] == [["far", "near"], ["far", "middle"], *2 * [["far", "further"]]]


@pytest.mark.parametrize("number", [0, 99])
def test_no_pictures_or_all(tmp_path: Path, number: int) -> None:
    evaluate(tmp_path, cases(), HTMLReport(tmp_path, pictures=number))
    assert list(shown(tmp_path)) == WORST_FIRST[:number]


def test_a_second_evaluation_starts_from_nothing(tmp_path: Path) -> None:
    handler = HTMLReport(tmp_path)
    evaluate(tmp_path, cases(["far", "near"]), handler)
    evaluate(tmp_path, cases(["near", "exact", "near"]), handler)  # one dealt out twice
    assert list(shown(tmp_path)) == ["near", "exact"]


def test_image_and_masks_of_a_ras_case_lie_on_each_other(tmp_path: Path, drawn: dict) -> None:
    # As in the bundles: the network sees LPS, label and inverted prediction are as on disk.
    label = torch.zeros(3, *SHAPE)
    label[:, 2:9, 3:11, 4:8] = 1
    ras = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    item = {
        "case": "ras",
        "image": MetaTensor(torch.cat([label, label[:1]]) * 5 + 1, affine=ras),
        "label": MetaTensor(label, affine=ras),
    }
    turn = Compose([Orientationd("image", "LPS", labels=None)])
    invert = Compose([Invertd("pred", turn, orig_keys="image", nearest_interp=True)])

    class Threshold(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image[:, :3] > 3).float()

    evaluate(
        tmp_path,
        Dataset([item], turn),
        HTMLReport(tmp_path),
        network=Threshold(),
        postprocessing=invert,
    )
    image, pred, truth = (volume.as_tensor() for volume in drawn["ras"])
    assert torch.equal(truth, label.flip(1, 2))
    assert torch.equal(pred, truth)
    assert torch.equal((image[:3] == 6).float(), truth)
    assert "mean Dice 1.000" in (tmp_path / "report.html").read_text()


def test_plain_tensors_are_drawn_as_they_are(tmp_path: Path, drawn: dict) -> None:
    data = cases(["near"])
    data[0]["image"] = data[0]["image"].as_tensor()
    data[0]["label"] = data[0]["label"].as_tensor()
    evaluate(
        tmp_path,
        data,
        HTMLReport(tmp_path),
        postprocessing=lambda item: {**item, "pred": item["label"]},
    )
    assert list(shown(tmp_path)) == ["near"]
    assert torch.equal(torch.as_tensor(drawn["near"][2]), data[0]["label"])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        HTMLReport(tmp_path, pictures=-1)
    with pytest.raises(TypeError, match=r"HTMLReport needs .* decollate=True"):
        SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases())),
            network=torch.nn.Identity(),
            val_handlers=[HTMLReport(tmp_path)],
            decollate=False,
        ).run()
    with pytest.raises(DataError, match=r"elsewhere.metrics_per_case\.csv: no such file"):
        evaluate(tmp_path, cases(["near"]), HTMLReport(tmp_path / "elsewhere"))


def _one_of_two(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    data = {item["case"]: item for item in cases()}
    mine = (["near", "far", "exact"], ["middle", "further", "near"])[rank]  # padded with "near"
    evaluate(folder, [data[case] for case in mine], HTMLReport(folder, pictures=3))
    torch.distributed.destroy_process_group()


def test_two_processes_show_what_one_shows(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path / "two")), nprocs=2)
    torch.manual_seed(0)
    data = [item for item in cases() if item["case"] != "close"]
    evaluate(tmp_path / "one", data, HTMLReport(tmp_path / "one", pictures=3))
    assert list(shown(tmp_path / "two")) == ["far", "further", "middle"]
    assert shown(tmp_path / "two") == shown(tmp_path / "one")
