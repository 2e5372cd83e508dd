"""Values and gradients of the scan against a plain loop over the positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mod_components.networks import chunked_scan
from mod_components.networks.selective_scan import selective_scan
from tests.networks.scans import NAMES, assert_same, inputs, leaves, loop, with_gradients

# torch.jit and the legacy behaviour of torch.compile warn about themselves in some versions
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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
                assert (groups - 1) * chunks * steps < length
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


@pytest.mark.parametrize("shape", [(1, 96, 16, 4096), (4, 96, 16, 1024), (4, 768, 16, 64)])
def test_little_is_kept_for_the_backward_pass(shape: tuple[int, int, int, int]) -> None:
    tensors = leaves(inputs(*shape))
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(*tensors)
    # beside the inputs, states at the groups' starts: N / 16 of u where positions are large
    allowed = 1.2 if shape[0] == 1 else 1 + shape[2] / 16 / 2
    assert sum(x.numel() for x in kept) < allowed * sum(x.numel() for x in tensors)


def test_second_derivatives_are_refused() -> None:
    tensors = leaves(inputs(1, 3, 2, 9))
    y = selective_scan(*tensors)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y.sum(), tensors[:1], create_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_loop() -> None:
    exact = inputs(2, 96, 16, 3000)
    dy = torch.randn(2, 96, 3000)
    expected = with_gradients(loop, leaves(exact, torch.float64), dy)
    tensors = [x.detach().cuda().requires_grad_() for x in leaves(exact)]
    actual = with_gradients(selective_scan, tensors, dy.cuda())
    assert_same([x.cpu() for x in actual], expected, 1e-5)
