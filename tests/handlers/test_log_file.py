"""The file that a run's log lines and warnings are copied to."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from mod_components.handlers import log_file
from mod_components.handlers.log_file import log_to_file
from mod_components.handlers.logs import TrainingLog
from tests.toys import ToyNetwork, toy_trainer


def write_lines(path: Path) -> None:
    with log_to_file(path):
        assert not path.exists()  # with the first line
        logging.getLogger("mod_components.training").warning("epoch %d", 1)
        logging.getLogger("ignite.engine").error("it ends")
        logging.getLogger("somebody").debug("not for everyone")
        warnings.warn("mind the gap", UserWarning, stacklevel=1)


def test_lines_and_warnings_go_to_the_file_and_are_shown_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deep" / "training.log"
    before = list(logging.root.handlers), warnings.showwarning
    with pytest.warns(UserWarning, match="mind the gap"):
        write_lines(path)
    assert (list(logging.root.handlers), warnings.showwarning) == before
    logging.getLogger("mod_components.training").warning("afterwards")
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "WARNING mod_components.training: epoch 1",
        "ERROR ignite.engine: it ends",
        "WARNING warnings: UserWarning: mind the gap",
    ]
    assert "epoch 1" in caplog.text


def test_it_is_appended_to_and_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LARGEST", 1000)
    for run in range(2):
        with log_to_file(tmp_path / "training.log"):
            logging.getLogger("mod_components").warning("run %d", run)
    assert (tmp_path / "training.log").read_text().count("run ") == 2
    with log_to_file(tmp_path / "training.log"):
        for step in range(200):
            logging.getLogger("mod_components").warning("step %d", step)
    names = ["training.log", "training.log.1", "training.log.2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "step 199" in (tmp_path / "training.log").read_text()


def test_a_training_that_fails_says_so_in_its_log(tmp_path: Path) -> None:
    trainer = toy_trainer(ToyNetwork(), {}, handlers=[TrainingLog(tmp_path)])
    before = list(logging.root.handlers)

    def fail(engine: Engine) -> None:
        warnings.warn("it smells of smoke", stacklevel=1)
        raise RuntimeError("the disk is on fire")

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with (
        pytest.warns(UserWarning, match="smoke"),
        pytest.raises(RuntimeError, match="on fire"),
    ):
        trainer.run()
    text = (tmp_path / "training.log").read_text()
    assert "UserWarning: it smells of smoke" in text
    assert "the disk is on fire" in text
    assert logging.root.handlers == before
