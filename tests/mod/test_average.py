"""The average of the weights follows every optimizer step and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mod_components.mod import WeightAverage, parameter_groups
from tests.toys import ToyNetwork, toy_trainer


def test_average_by_hand(tmp_path: Path) -> None:
    network = ToyNetwork()
    average = WeightAverage(network, tmp_path, momentum=0.75)
    seen = [{name: p.detach().clone() for name, p in network.named_parameters()}]
    trainer = toy_trainer(network, {"average": average}, batch_size=1)
    trainer.optimizer.register_step_post_hook(
        lambda *_: seen.append({n: p.detach().clone() for n, p in network.named_parameters()})
    )
    trainer.run()
    assert len(seen) > 3
    saved = torch.load(tmp_path / "model_ema.pt", weights_only=True)
    assert saved.keys() == network.state_dict().keys()
    for name in seen[0]:
        expected = seen[1][name].clone()  # AveragedModel starts with the first weights it sees
        for weights in seen[2:]:
            expected = 0.75 * expected + 0.25 * weights[name]
        torch.testing.assert_close(saved[name], expected)


def test_a_step_that_a_fused_optimizer_skips_does_not_count(tmp_path: Path) -> None:
    """A scaler calls such an optimizer always and leaves the finding in ``found_inf``."""
    network = ToyNetwork()
    average = WeightAverage(network, tmp_path, momentum=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    average._start(toy_trainer(network, {"average": average}, optimizer=optimizer))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    for found, steps in ((0.0, 1), (1.0, 1), (0.0, 2)):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        assert int(average.build().n_averaged) == steps


def test_average_is_neither_trained_nor_shared(tmp_path: Path) -> None:
    network = ToyNetwork()
    average = WeightAverage(network, tmp_path)
    average.build()
    groups = parameter_groups(network, {"average": average}, 0.05)
    trained = {p for group in groups for p in group["params"]}
    assert trained == set(network.parameters())
    own = {p.data_ptr() for p in network.parameters()}
    assert not own & {p.data_ptr() for p in average.parameters()}


def test_state_is_restored_before_the_start(tmp_path: Path) -> None:
    average = WeightAverage(ToyNetwork(), tmp_path)
    average.build()
    state = average.state_dict()
    other = WeightAverage(ToyNetwork(), tmp_path)
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_weights_that_are_lost_replace_nothing(tmp_path: Path) -> None:
    network = ToyNetwork()
    average = WeightAverage(network, tmp_path, momentum=0.5)
    toy_trainer(network, {"average": average}).run()
    before = (tmp_path / "model_ema.pt").read_bytes()
    weight = next(average.build().module.parameters())
    weight.flatten()[0] = torch.inf
    average._save(None)
    assert (tmp_path / "model_ema.pt").read_bytes() == before


def test_momentum_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ema_momentum must lie between 0 and 1, got 1"):
        WeightAverage(ToyNetwork(), tmp_path, momentum=1)
