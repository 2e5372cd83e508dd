"""The selective scan against a plain loop over the positions, differentiated by autograd."""

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

from mod_components.networks import chunked_scan
from mod_components.networks import selective_scan as module
from mod_components.networks.selective_scan import scan_backend, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D")
# torch.jit and the legacy behaviour of torch.compile warn about themselves in some versions
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def loop(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    h = torch.zeros(u.shape[0], u.shape[1], a.shape[1], dtype=u.dtype)
    y = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * a) * h + step * u[:, :, t, None] * b[:, None, :, t]
        y.append((h * c[:, None, :, t]).sum(2) + d * u[:, :, t])
    return torch.stack(y, 2)


def inputs(
    batch: int, channels: int, states: int, length: int, largest: float = 0.1, seed: int = 0
) -> list[Tensor]:
    """Float64 inputs as in a trained Mamba: A = -1 ... -N, delta log-uniform from 1e-3 on."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    share = torch.rand(batch, channels, length, generator=generator, dtype=torch.float64)
    delta = 1e-3 * (largest / 1e-3) ** share
    a = -torch.arange(1.0, states + 1, dtype=torch.float64) * (1 + 0.1 * normal(channels, 1)).abs()
    return [
        normal(batch, channels, length),
        delta,
        a,
        normal(batch, states, length),
        normal(batch, states, length),
        normal(channels),
    ]


def leaves(tensors: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.detach().to(dtype, copy=True).requires_grad_() for x in tensors]


def with_gradients(function: Any, tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    y = function(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy.to(y.dtype))]


def assert_same(
    actual: list[Tensor], expected: list[Tensor], tolerance: float, names: Any = ("y", *NAMES)
) -> None:
    for name, x, reference in zip(names, actual, expected, strict=True):
        assert x.shape == reference.shape, name
        error, scale = (x.double() - reference).abs().max(), reference.abs().max()
        assert error <= tolerance * scale, f"{name}: {error:.1e} of {scale:.1e}"


@pytest.fixture
def tiny_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 2 chunks × 3 steps, so that few positions make many groups."""

    def plan(row: int, length: int, on_cpu: bool) -> tuple[int, int, int]:
        return -(-length // 6), 2, 3

    monkeypatch.setattr(chunked_scan, "plan", plan)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 13, 31])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradcheck_over_many_groups(batch: int, length: int, tiny_groups: None) -> None:
    tensors = leaves(inputs(batch, 3, 2, length, largest=2.0), torch.float64)
    assert torch.autograd.gradcheck(selective_scan, tensors)
    dy = torch.randn(batch, 3, length, dtype=torch.float64)
    expected = with_gradients(loop, tensors, dy)
    assert_same(with_gradients(selective_scan, tensors, dy), expected, 1e-13)


@pytest.mark.parametrize("length", [1, 2, 3, 11, 97])
def test_gradcheck_with_the_real_plan(length: int) -> None:
    tensors = leaves(inputs(2, 2, 3, length), torch.float64)
    assert torch.autograd.gradcheck(selective_scan, tensors, fast_mode=length > 11)


@pytest.mark.parametrize(
    ("batch", "channels", "states", "length", "largest"),
    [
        (1, 96, 16, 1571, 0.1),  # several groups
        (1, 96, 16, 1571, 5.0),
        (2, 40, 16, 1009, 0.1),
        (2, 5, 3, 5003, 0.1),  # one group
        (1, 1, 1, 1000, 5.0),
        (3, 768, 16, 33, 0.1),
    ],
)
def test_float32_agrees_with_a_float64_loop(
    batch: int, channels: int, states: int, length: int, largest: float
) -> None:
    exact = inputs(batch, channels, states, length, largest)
    dy = torch.randn(batch, channels, length)
    rounded = [x.float().double() for x in exact]
    expected = with_gradients(loop, leaves(rounded, torch.float64), dy)
    actual = with_gradients(selective_scan, leaves(exact), dy)
    assert all(x.dtype == torch.float32 for x in actual)
    assert_same(actual, expected, 1e-5)
    with torch.no_grad():
        assert torch.equal(selective_scan(*leaves(exact)), actual[0])


def test_every_position_is_worked_through_once() -> None:
    for row in (1, 64, 1536, 3072, 12_288, 49_152, 2_000_000):
        for length in (1, 2, 3, 17, 512, 4097, 32_768, 262_144):
            for on_cpu in (True, False):
                groups, chunks, steps = chunked_scan.plan(row, length, on_cpu)
                assert (groups - 1) * chunks * steps < length + groups * chunks
                assert groups * chunks * steps >= length
                assert chunks >= 1
                assert steps >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_only_at_the_ends(dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in inputs(2, 6, 4, 150)]
    dy = torch.randn(2, 6, 150).to(dtype)
    wide = with_gradients(selective_scan, leaves(tensors), dy)
    half = with_gradients(selective_scan, leaves(tensors, dtype), dy)
    assert all(torch.equal(x, reference.to(dtype)) for x, reference in zip(half, wide, strict=True))


def test_autocast_changes_nothing() -> None:
    tensors = leaves(inputs(2, 6, 4, 150))
    dy = torch.randn(2, 6, 150)
    expected = with_gradients(selective_scan, tensors, dy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(selective_scan, tensors, dy)
        with torch.no_grad():
            assert torch.equal(selective_scan(*tensors), expected[0])
    assert all(torch.equal(x, reference) for x, reference in zip(actual, expected, strict=True))
    # activations of an autocast layer beside float32 parameters
    mixed = [x.detach().to(torch.bfloat16) if x.ndim == 3 else x for x in tensors]
    assert selective_scan(*mixed).dtype == torch.bfloat16


def test_other_memory_layouts() -> None:
    u, delta, a, b, c, d = (x.float() for x in inputs(2, 6, 4, 150))
    dy = torch.randn(2, 6, 150)
    expected = with_gradients(selective_scan, leaves([u, delta, a, b, c, d]), dy)
    strided = [
        u.transpose(1, 2).contiguous().transpose(1, 2),  # channels last
        torch.stack([delta, delta], 3)[..., 0],
        a.t().contiguous().t(),
        torch.cat([b, c], 1).transpose(0, 2).contiguous().transpose(0, 2)[:, :4],
        torch.cat([b, c], 1)[:, 4:],
        torch.stack([d, d], 1)[:, 0],
    ]
    assert sum(x.is_contiguous() for x in strided) == 0
    tensors = [x.requires_grad_() for x in strided]
    actual = with_gradients(selective_scan, tensors, dy.transpose(1, 2).contiguous().mT)
    assert_same(actual, [x.double() for x in expected], 1e-6)
    one_step = delta[:, :1, :1].expand(2, 6, 150)
    y = selective_scan(u, one_step, a, b, c, d)
    assert_same([y], [loop(u, one_step, a, b, c, d).double()], 1e-5, "y")


def test_gradients_only_where_they_are_wanted() -> None:
    exact = inputs(1, 5, 3, 60)
    dy = torch.randn(1, 5, 60)
    expected = dict(zip(NAMES, with_gradients(selective_scan, leaves(exact), dy)[1:], strict=True))
    for name in NAMES:
        tensors = dict(zip(NAMES, leaves(exact), strict=True))
        for other in set(NAMES) - {name}:
            tensors[other].requires_grad_(False)
        selective_scan(*tensors.values()).backward(dy)
        gradient = tensors[name].grad
        assert gradient is not None
        assert torch.equal(gradient, expected[name])
        assert all(tensors[other].grad is None for other in set(NAMES) - {name})
    assert not selective_scan(*(x.float() for x in exact)).requires_grad


def test_same_bits_in_every_run_and_inputs_left_alone() -> None:
    exact = inputs(2, 48, 16, 700)
    dy = torch.randn(2, 48, 700)
    tensors = leaves(exact)
    first = with_gradients(selective_scan, tensors, dy)
    assert all(torch.equal(x, y.float()) for x, y in zip(tensors, exact, strict=True))
    for _ in range(2):
        again = with_gradients(selective_scan, leaves(exact), dy)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN; conftest.py undoes it
    again = with_gradients(selective_scan, leaves(exact), dy)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_one_thread_computes_and_the_others_come_back() -> None:
    exact = inputs(2, 48, 16, 700)
    dy = torch.randn(2, 48, 700)
    expected = with_gradients(selective_scan, leaves(exact), dy)
    seen: list[int] = []
    torch.set_num_threads(2)  # conftest.py sets one
    try:
        actual = with_gradients(selective_scan, leaves(exact), dy)
        assert torch.get_num_threads() == 2
        with chunked_scan.one_thread():
            seen.append(torch.get_num_threads())
        with pytest.raises(RuntimeError), torch.no_grad():
            selective_scan(*[x.to("meta") if x.ndim == 1 else x for x in exact])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1]
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def test_little_is_kept_for_the_backward_pass() -> None:
    tensors = leaves(inputs(1, 96, 16, 4096))
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(*tensors)
    assert sum(x.numel() for x in kept) < 1.2 * sum(x.numel() for x in tensors)


def test_second_derivatives_are_refused() -> None:
    tensors = leaves(inputs(1, 3, 2, 9))
    y = selective_scan(*tensors)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y.sum(), tensors[:1], create_graph=True)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_loop() -> None:
    exact = inputs(2, 96, 16, 3000)
    dy = torch.randn(2, 96, 3000)
    expected = with_gradients(loop, leaves(exact, torch.float64), dy)
    tensors = [x.detach().cuda().requires_grad_() for x in leaves(exact)]
    actual = with_gradients(selective_scan, tensors, dy.cuda())
    assert_same([x.cpu() for x in actual], expected, 1e-5)
