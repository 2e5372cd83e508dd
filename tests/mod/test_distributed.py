"""Two processes with half the batch each do what one does with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.engines.utils import IterationEvents
from torch import nn

from mod_components.mod import Attach
from tests.toys import ToyNetwork, toy_components, toy_data, toy_trainer

STEPS = 2

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch's gloo backend"
)


class Record:
    """Keeps gradients after the first backward pass, and the losses of every step."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[dict[str, float]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        self.losses.append({k: v.item() for k, v in engine.state.output.items() if "loss" in k})
        if not self.gradients:
            for owner, module in self.modules.items():
                for name, p in module.named_parameters():
                    assert p.grad is not None, (owner, name)
                    self.gradients[f"{owner}.{name}"] = p.grad.clone()


def train(rank: int, processes: int, batch_norm: bool = False) -> dict[str, Any]:
    """Two steps on four cases, this process's share of each batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ToyNetwork(batch_norm=batch_norm)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(network) if processes > 1 else network
    torch.manual_seed(100 + rank)  # components start differently: rank 0's must count
    mod = toy_components(wrapped, warmup_epochs=0)
    with torch.no_grad():
        mod["views"].fill.fill_(0.1 + rank)  # type: ignore[union-attr, operator]
    cases = toy_data(4)
    share = len(cases) // processes
    data = cases[rank * share : (rank + 1) * share] * STEPS
    record = Record({"network": network, **{k: m for k, m in mod.items() if k != "teacher"}})
    trainer = toy_trainer(
        wrapped, None, attach=False, data=data, batch_size=share, handlers=[Attach(mod), record],
        optimizer=torch.optim.SGD(
            [p for m in (network, *mod.values()) for p in m.parameters()], lr=0.1
        ),
    )  # fmt: skip
    trainer.run()
    tokenizer = mod["tokenizer"]
    return {
        "gradients": record.gradients,
        "losses": record.losses,
        "centres": dict(tokenizer.named_buffers()),
        "teacher": {**dict(mod["teacher"].named_parameters()),
                    **dict(mod["teacher"].named_buffers())},
        "weights": {f"{k}.{n}": p.detach() for k, m in record.modules.items()
                    for n, p in m.named_parameters()},
        "metrics": dict(trainer.state.metrics),
    }  # fmt: skip


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    try:
        torch.save(train(rank, 2), os.path.join(folder, f"{rank}.pt"))
        torch.save(train(rank, 2, batch_norm=True), os.path.join(folder, f"norm_{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes have saved."""
    made: Path = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (str(made),), nprocs=2)
    return made


@pytest.fixture(scope="module")
def runs(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state = torch.get_rng_state()
    one = train(0, 1)
    torch.set_rng_state(state)
    return one, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_gradients_of_the_first_step_are_those_of_the_whole_batch(runs: Any) -> None:
    one, two = runs
    for part in two:
        assert part["gradients"].keys() == one["gradients"].keys()
        for name, expected in one["gradients"].items():
            assert expected.norm() > 0, name
            assert (part["gradients"][name] - expected).norm() < 1e-5 * expected.norm(), name


def test_centres_are_those_of_the_whole_batch(runs: Any) -> None:
    one, two = runs
    for part in two:
        for name, expected in one["centres"].items():
            difference = (part["centres"][name] - expected).float().norm()
            assert difference < 1e-5 * expected.float().norm(), name


def test_losses_average_to_those_of_the_whole_batch(runs: Any) -> None:
    one, two = runs
    assert len(one["losses"]) == STEPS
    for step, losses in enumerate(one["losses"]):
        for name, expected in losses.items():
            mean = sum(part["losses"][step][name] for part in two) / 2
            assert mean == pytest.approx(expected, rel=1e-4), name


def test_processes_stay_alike(runs: Any) -> None:
    """Weights of network, heads, predictor, fill and teacher after the steps, bit for bit."""
    _, (first, second) = runs
    for part in ("weights", "teacher", "centres"):
        for name, value in first[part].items():
            assert torch.equal(second[part][name], value), name


def test_teachers_have_the_same_running_statistics(folder: Path) -> None:
    """A network's own are of each process's batches; a teacher answers from its own."""
    saved = [torch.load(folder / f"norm_{rank}.pt", weights_only=False) for rank in range(2)]
    first, second = (part["teacher"] for part in saved)
    assert "copies.encoder.stem.1.running_mean" in first
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_health_figures_are_those_of_all_processes(runs: Any) -> None:
    one, two = runs
    for part in two:
        for name in ("token_marginal_entropy", "class_marginal_entropy", "token_divergence"):
            assert part["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-3), name
