"""Ctrl-C and SIGTERM around Ray Train, which sets a handler of its own and leaves it behind."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from polysome.training import launch


@pytest.fixture(autouse=True)
def own_handlers() -> Any:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Trainer:
    """Does with Ctrl-C what Ray Train does."""

    def __init__(self, *, interrupted: bool) -> None:
        self.interrupted = interrupted

    def fit(self) -> Any:
        signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
        if self.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("trained")


def test_after_training_ctrl_c_is_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained"), launch._stopping(str(tmp_path)):
        launch._fit(Trainer(interrupted=False))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_training_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), launch._stopping(str(tmp_path)):
        launch._fit(Trainer(interrupted=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_sigterm_asks_for_a_checkpoint_and_the_second_is_as_ever(tmp_path: Path) -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    with launch._stopping(str(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / launch.STOP).read_text() == "SIGTERM\n"
        assert told == []
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == [signal.SIGTERM]
