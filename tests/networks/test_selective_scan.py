"""How the selective scan is reached: checks, traces, compiled graphs, mamba_ssm's kernel."""

from __future__ import annotations

import copy
import io
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn

from mod_components.networks import selective_scan as module
from mod_components.networks.selective_scan import scan_backend, selective_scan
from tests.networks.scans import NAMES, assert_same, inputs, leaves, loop, with_gradients

# torch.jit and the legacy behaviour of torch.compile warn about themselves in some versions
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("u", torch.zeros(6, 9)),
        ("u", torch.zeros(2, 6, 0)),
        ("u", torch.zeros(2, 6, 9, dtype=torch.int64)),
        ("delta", torch.zeros(2, 6, 8)),
        ("delta", torch.zeros(6, 9)),
        ("A", torch.zeros(5, 4)),
        ("A", torch.zeros(6)),
        ("A", torch.zeros(6, 0)),
        ("B", torch.zeros(2, 5, 9)),
        ("B", torch.zeros(2, 9, 4)),
        ("C", torch.zeros(1, 4, 9)),
        ("D", torch.zeros(4)),
        ("D", torch.zeros(6, 1)),
    ],
)
def test_wrong_shapes_are_told(name: str, value: Tensor) -> None:
    tensors = dict(zip(NAMES, inputs(2, 6, 4, 9), strict=True))
    tensors[name] = value
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        selective_scan(*tensors.values())


def test_meta_tensors_have_shapes_and_links() -> None:
    tensors = [x.to("meta").requires_grad_() for x in inputs(2, 6, 4, 50_000)]
    y = selective_scan(*tensors)
    assert y.shape == (2, 6, 50_000)
    assert y.is_meta
    gradients = torch.autograd.grad(y.sum(), tensors)
    assert [x.shape for x in gradients] == [x.shape for x in tensors]
    with torch.no_grad():
        assert selective_scan(*tensors).shape == (2, 6, 50_000)


def test_monai_tensors_give_plain_tensors() -> None:
    exact = inputs(1, 4, 3, 20)
    tensors = leaves(exact)
    u = MetaTensor(exact[0].float()).requires_grad_()
    y = selective_scan(u, *tensors[1:])
    assert type(y) is Tensor
    expected = selective_scan(*tensors)
    assert torch.equal(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), [u])
    (expected_gradient,) = torch.autograd.grad(expected.sum(), tensors[:1])
    assert torch.equal(gradient.as_subclass(Tensor), expected_gradient)


class Block(nn.Module):
    """The scan between other layers, as in Mamba."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.rand(6, 4).log())
        self.skip = nn.Parameter(torch.randn(6))
        self.project = nn.Linear(6, 14)

    def forward(self, x: Tensor) -> Tensor:
        delta, b, c = self.project(x.transpose(1, 2)).transpose(1, 2).split((6, 4, 4), 1)
        delta = F.softplus(delta)
        return selective_scan(x, delta, -self.rates.exp(), b, c, self.skip).tanh()


@pytest.mark.parametrize("grad_mode", [False, True])
def test_traced_modules(grad_mode: bool) -> None:
    block = Block().eval()
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(block, torch.randn(2, 6, 301))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        # the scan stays a loop: its size does not depend on the length
        assert len(str(traced.inlined_graph).splitlines()) < 1000
        for length in (301, 301, 301, 64):
            x = torch.randn(2, 6, length)
            for network in (traced, loaded, torch.jit.freeze(copy.deepcopy(loaded).eval())):
                assert torch.equal(network(x), block(x))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_compiled_agrees(tolerance: float, **options: Any) -> None:
    block = Block()
    compiled = torch.compile(block, fullgraph=True, **options)
    for length in (40, 301):
        x = torch.randn(2, 6, length, requires_grad=True)
        tensors = [x, *block.parameters()]
        dy = torch.randn(2, 6, length)
        expected = [y.double() for y in with_gradients(lambda x, *_: block(x), tensors, dy)]
        actual = with_gradients(lambda x, *_: compiled(x), tensors, dy)
        assert_same(actual, expected, tolerance, range(len(actual)))
        with torch.no_grad():
            assert_same([compiled(x)], expected[:1], tolerance, "y")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_modules(dynamic: bool, fresh_compiler: None) -> None:
    assert_compiled_agrees(0.0, backend="eager", dynamic=dynamic)


@pytest.mark.slow  # compiles C++
def test_modules_compiled_by_inductor(fresh_compiler: None) -> None:
    assert_compiled_agrees(1e-5, backend="inductor")


class FakeKernel:
    """``mamba_ssm.ops.selective_scan_interface`` with the loop in place of its CUDA kernel."""

    def __init__(self) -> None:
        self.dtypes: list[list[torch.dtype]] = []

    def selective_scan_fn(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor | None = None,  # noqa: N803
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> Tensor:
        assert D is not None
        assert z is None
        assert delta_bias is None
        assert not delta_softplus
        assert not return_last_state
        self.dtypes.append([x.dtype for x in (u, delta, A, B, C, D)])
        return loop(*(x.float() for x in (u, delta, A, B, C, D))).to(u.dtype)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Neither the search for mamba_ssm nor the log message has happened yet."""
    for clear in (module._kernel.cache_clear, module._log_once.cache_clear):
        clear()
    yield
    for clear in (module._kernel.cache_clear, module._log_once.cache_clear):
        clear()


@pytest.fixture
def kernel(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = fake.selective_scan_fn  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    return fake


def test_the_kernel_runs_on_its_devices_only(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=module.__name__)
    tensors = leaves(inputs(2, 5, 3, 40))
    dy = torch.randn(2, 5, 40)
    plain = with_gradients(selective_scan, tensors, dy)
    assert scan_backend("cpu") == scan_backend(torch.device("cpu")) == "torch"
    assert scan_backend("cuda") == "mamba_ssm"
    assert kernel.dtypes == []

    monkeypatch.setattr(module, "_KERNEL_DEVICES", ("cpu",))
    assert scan_backend("cpu") == "mamba_ssm"
    by_kernel = with_gradients(selective_scan, tensors, dy)
    assert kernel.dtypes == [[torch.float32] * 6]
    assert_same(by_kernel, [x.double() for x in plain], 1e-5)
    selective_scan(*leaves(tensors, torch.float64))  # the kernel has no float64
    assert len(kernel.dtypes) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # one for each implementation
    assert "torch" in messages[0]
    assert "mamba_ssm" in messages[1]


def test_the_kernel_gets_dtypes_that_it_takes(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KERNEL_DEVICES", ("cpu",))
    half, wide = torch.bfloat16, torch.float32
    tensors = [x.to(half) for x in inputs(1, 5, 3, 8)]
    assert selective_scan(*tensors).dtype == half
    tensors[1] = tensors[1].float()
    assert selective_scan(*tensors).dtype == half
    assert kernel.dtypes == [[half, half, wide, half, half, wide], [wide] * 6]


def test_traces_and_graphs_do_not_call_the_kernel(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    monkeypatch.setattr(module, "_KERNEL_DEVICES", ("cpu",))
    block, x = Block().eval(), torch.randn(1, 6, 30)
    with torch.no_grad():
        traced = torch.jit.trace(block, x, check_trace=False)(x)
        compiled = torch.compile(block, backend="eager")(x)
        assert kernel.dtypes == []
        assert_same([traced, compiled], [block(x).double()] * 2, 1e-5, "tc")
    assert len(kernel.dtypes) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_kernel(broken: bool, forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    interface = "mamba_ssm.ops.selective_scan_interface"
    if broken:  # an older or a newer package without that function
        for name in ("mamba_ssm", "mamba_ssm.ops", interface):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    else:
        monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert scan_backend("cuda") == "torch"
