"""The CPU is made repeatable; a GPU's process is left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mod_components.process import keep_freed_memory, launch, prepare_cpu, state_of_this_launch


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_nothing_changes_for_a_gpu() -> None:
    prepare_cpu("cuda:0")
    assert not torch.are_deterministic_algorithms_enabled()


def test_gradients_that_add_into_one_place_are_repeatable() -> None:
    prepare_cpu("cpu")
    assert torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    index = torch.randint(0, 50, (400_000,))
    weights = torch.randn(400_000)
    gradients = []
    for _ in range(5):
        table = torch.randn(50, requires_grad=True)
        (table[index] * weights).sum().backward()
        gradients.append(table.grad)
    first = gradients[0]
    assert first is not None
    assert all(torch.equal(first, other) for other in gradients[1:] if other is not None)


def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    assert keep_freed_memory() in (True, False)
    x = torch.randn(64, 1024, 256)  # a block that would be mapped anew
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("keep_freed", [True, False])
def test_keeping_freed_memory_can_be_switched_off(
    keep_freed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr("mod_components.process.keep_freed_memory", lambda: calls.append(True))
    prepare_cpu("cpu", keep_freed)
    assert calls == [True] * keep_freed
    assert torch.are_deterministic_algorithms_enabled()


def restarted(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
    """The environment that torchrun gives a process."""
    error_file = f"/tmp/torchelastic_x/{name}/attempt_{times}/0/error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", error_file)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(times))


def test_a_launch_keeps_its_name_over_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert launch() == ""
    restarted(monkeypatch, "none_a1", 0)
    assert launch() == "none_a1"
    restarted(monkeypatch, "none_a1", 2)
    assert launch() == "none_a1"


@pytest.mark.parametrize("path", ["/error.json", "/tmp/error.json", "error.json"])
def test_an_error_file_of_the_user_names_no_launch(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", path)
    assert launch() == ""


@pytest.mark.parametrize(
    ("written_by", "times", "goes_on"),
    [
        ("none_a1", 1, True),
        ("none_a1", 0, False),  # the user's own command decides
        ("none_b2", 1, False),  # an earlier run's
        ("", 1, False),
        (None, 1, False),  # written before launches had names, or by another program
    ],
)
def test_a_restart_goes_on_from_what_its_launch_has_saved(
    written_by: str | None, times: int, goes_on: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    state = {"network": torch.zeros(3)} | ({} if written_by is None else {"launch": written_by})
    torch.save(state, tmp_path / "last.pt")
    restarted(monkeypatch, "none_a1", times)
    assert state_of_this_launch(tmp_path) == (str(tmp_path / "last.pt") if goes_on else "")


def test_a_restart_before_the_first_save_starts_as_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    restarted(monkeypatch, "none_a1", 1)
    assert state_of_this_launch(tmp_path) == ""
    assert "by this launch yet, starting as the command says" in caplog.text


def test_without_torchrun_nothing_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    assert state_of_this_launch(tmp_path) == ""
