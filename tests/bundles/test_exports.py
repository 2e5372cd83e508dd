"""Networks exported by the commands of the how-to give PyTorch's logits."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export
from torch import Tensor, nn

from mod_components.data import make_sample
from mod_components.release import backbones
from tests.backbones import build_network, small_settings
from tests.bundles.conftest import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
VERBS = {"ckpt_export": ckpt_export, "onnx_export": onnx_export}


def crop(backbone: str) -> list[int]:
    return [int(backbones()[backbone]["smallest_size"])] * 3


@pytest.fixture(scope="module")
def fresh(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the weights of a small network as it was built, and the record of its size."""
    target = tmp_path_factory.mktemp("exports") / f"{backbone}_mod"
    shutil.copytree(REPOSITORY / "bundles" / target.name / "configs", target / "configs")
    (target / "models").mkdir()
    torch.manual_seed(0)
    torch.save(network_of(backbone).state_dict(), target / "models" / "model.pt")
    settings = {"roi_size": crop(backbone), **small_settings(backbone)}
    (target / "models" / "training.json").write_text(json.dumps({"settings": settings}))
    return target


def network_of(backbone: str) -> nn.Module:
    return build_network(backbone, crop(backbone)).eval()


def run_documented(verb: str, bundle: Path, size: list[int]) -> None:
    """Run a command of the how-to as the command line would, in this process to save time."""
    (line,) = re.findall(rf"^python -m monai\.bundle ({verb} .*)$", GUIDE, re.M)
    line = line.replace("[1, 4, 128, 128, 128]", str([1, 4, *size]))
    fire.Fire(VERBS, command=shlex.split(placed(line, bundle)))


def placed(text: str, bundle: Path) -> str:
    return text.replace("CONFIGS", "BUNDLE/configs").replace("BUNDLE", str(bundle))


def logits(backbone: str, bundle: Path) -> tuple[Tensor, Tensor]:
    """Random crops, a batch of one, and PyTorch's logits."""
    network = network_of(backbone)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    x = torch.randn(1, 4, *crop(backbone))
    with torch.no_grad():
        return x, network(x)


def assert_logits(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_torchscript(
    fresh: Path, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the command works from any folder
    run_documented("ckpt_export", fresh, crop(backbone))
    exported = torch.jit.load(fresh / "models" / "model.ts")
    x, expected = logits(backbone, fresh)
    with torch.no_grad():
        assert_logits(exported(x), expected)


@pytest.fixture(scope="module")
def onnx_file(fresh: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        run_documented("onnx_export", fresh, crop(backbone))
    return fresh / "models" / "model.onnx"


def test_onnx(onnx_file: Path, fresh: Path, backbone: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert list(onnx_file.parent.glob("model.onnx*")) == [onnx_file]  # the weights are inside
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    x, expected = logits(backbone, fresh)
    assert session.get_inputs()[0].shape == list(x.shape)
    (actual,) = session.run(["pred"], {"image": x.numpy()})
    assert_logits(torch.from_numpy(actual), expected)


@pytest.mark.parametrize("backbone", ["unetr"], indirect=True)
def test_sliding_windows_over_onnx(
    onnx_file: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The how-to's example writes the label map that the bundle itself writes."""
    assert onnx_file.parent == fresh / "models"
    monkeypatch.chdir(tmp_path)
    data = make_sample(tmp_path / "data", cases=1)
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
    example = placed(example, fresh).replace("/data/scans", str(data))
    exec(compile(example, "export.md", "exec"), {})
    workflow = ConfigWorkflow(
        str(fresh / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(fresh),
        dataset_dir=str(data),
        output_dir=str(tmp_path / "bundle"),
    )
    workflow.initialize()
    workflow.run()
    by_bundle, by_onnx = (
        np.asarray(nib.load(tmp_path / folder / "Sample_001_seg.nii.gz").dataobj)
        for folder in ("bundle", "out")
    )
    # a logit within rounding of the threshold may fall on either side of it
    assert (by_bundle != by_onnx).mean() < 1e-4
    assert len(np.unique(by_bundle)) > 1
