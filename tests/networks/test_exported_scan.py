"""The scan as it goes into an ONNX file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mod_components.networks.exported_scan import BLOCK, exported
from mod_components.networks.selective_scan import selective_scan
from tests.networks.scans import assert_same, inputs, loop


@pytest.mark.parametrize("length", [1, BLOCK, 2 * BLOCK + 3])
def test_values(length: int) -> None:
    exact = inputs(2, 5, 3, length)
    assert_same([exported(*exact)], [loop(*exact)], 1e-12, "y")


class Block(nn.Module):
    """The scan between other operations, of a batch of two."""

    def forward(self, x: Tensor) -> Tensor:
        delta, b, c = F.softplus(x), x[:, :4], x[:, 2:]
        rates = -torch.ones(6, 4).cumsum(1)
        return selective_scan(x, delta, rates, b, c, torch.ones(6)).tanh()


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x, path = torch.randn(2, 6, 3 * BLOCK + 5), tmp_path / "block.onnx"
    program = torch.onnx.export(Block(), (x,), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model.graph].count("Scan") == 1
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), Block()(x), rtol=1e-5, atol=1e-5)


def test_the_tracing_exporter_is_refused(tmp_path: Path) -> None:
    """It would end the process with a segmentation fault in torch's own code."""
    pytest.importorskip("onnx")
    with pytest.raises(RuntimeError, match="dynamo=True"):
        torch.onnx.export(Block(), (torch.randn(1, 6, 9),), str(tmp_path / "a.onnx"), dynamo=False)
