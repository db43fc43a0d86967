"""Calls of functions in processes that end with them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from aegaeon.runtime.process import child_call
from aegaeon.runtime.process.child_call import ChildCall, ChildDiedError
from aegaeon.runtime.process.process_log import LogPlace

HERE = __name__


def sizes(folder: Path) -> dict[str, int]:
    print("what it prints is no answer")
    return {file.name: file.stat().st_size for file in folder.iterdir()} | {"pid": os.getpid()}


def fail(reason: str) -> None:
    raise FileNotFoundError(2, reason)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unsendable() -> object:
    return lambda: None


def leave() -> None:
    raise SystemExit(0)


def vanish() -> None:
    os._exit(0)


class OddError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail_oddly() -> None:
    raise OddError("o", "dd")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def call(function: str, log: Path) -> ChildCall:
    return ChildCall("helper", LogPlace(file=log), HERE, function)


def test_a_function_answers_from_a_process_of_its_own(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("text")
    answer = call("sizes", tmp_path / "log")(folder)
    assert answer.pop("pid") != os.getpid()
    assert answer == {"a": 4}
    assert "what it prints" in (tmp_path / "log").read_text()


def test_what_it_raises_is_raised_here(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as raised:
        call("fail", tmp_path / "log")("gone")
    assert raised.value.errno == 2


def test_a_process_that_dies_has_no_answer(tmp_path: Path):
    with pytest.raises(ChildDiedError, match="helper was killed by signal 9"):
        call("die", tmp_path / "log")()


def test_an_answer_that_cannot_be_sent_is_none(tmp_path: Path):
    with pytest.raises(ChildDiedError, match="helper has failed"):
        call("unsendable", tmp_path / "log")()
    assert "pickle" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("leave", r"helper ended itself \(0\)"),
        ("vanish", "helper ended without an answer"),
        ("fail_oddly", "OddError: odd"),
    ],
)
def test_whatever_ends_it_is_one_error(tmp_path: Path, function: str, said: str):
    with pytest.raises(ChildDiedError, match=said):
        call(function, tmp_path / "log")()


def test_a_process_that_is_stuck_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_call, "_LOOK_S", 0.05)
    monkeypatch.setattr(child_call, "_SILENCE_S", 0.5)
    with pytest.raises(ChildDiedError, match="helper was killed by signal 9"):
        call("stop", tmp_path / "log")()
