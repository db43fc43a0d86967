"""Functions called in processes that a fork server forks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegaeon.runtime.process import forked_process
from aegaeon.runtime.process.fork_server import ForkServer
from aegaeon.runtime.process.forked_process import Call, ForkedProcess, ProcessDiedError
from aegaeon.runtime.process.process import ProcessId
from aegaeon.runtime.process.process_log import LogPlace

HERE = __name__
END_S = 60.0


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


def fail_elsewhere() -> None:
    from tests.runtime.process.only_there import OnlyThereError

    raise OnlyThereError("there")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def surroundings() -> dict[str, Any]:
    return {
        "server": os.getppid(),
        "threads of the server": len(list(Path(f"/proc/{os.getppid()}/task").iterdir())),
        "descriptors": {what(fd) for fd in Path("/proc/self/fd").iterdir()},
        "modules": {"torch", "numpy"} & sys.modules.keys(),
        "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
    }


def what(descriptor: Path) -> str:
    """What it is a descriptor of; empty where it is closed by now."""
    with contextlib.suppress(FileNotFoundError):
        return str(descriptor.readlink()).partition(":")[0]
    return ""


class Forks:
    """A fork server, and a log of it and of all that it forks."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.begun: list[int] = []
        self.server = ForkServer("forks", LogPlace(file=log), (HERE,), self.begun.append)

    def start(self, function: str, *arguments: object) -> ForkedProcess:
        return self.server.start(Call("helper", LogPlace(file=self.log), HERE, function, arguments))

    def call(self, function: str, *arguments: object) -> Any:
        return self.start(function, *arguments).result()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks") / "log")
    yield forks
    forks.server.close()


def test_a_function_answers_from_a_process_of_its_own(forks: Forks, tmp_path: Path):
    (tmp_path / "a").write_text("text")
    process = forks.start("sizes", tmp_path)
    pid = process.pid()
    answer = process.result()
    assert answer == {"a": 4, "pid": pid}
    assert pid != os.getpid()
    assert "what it prints" in forks.log.read_text()


def test_answers_are_of_any_size(forks: Forks, tmp_path: Path):
    name = "n" * 200
    for index in range(2_000):
        (tmp_path / f"{name}{index}").touch()
    assert len(forks.call("sizes", tmp_path)) == 2_001


def test_what_it_raises_is_raised_here(forks: Forks):
    with pytest.raises(FileNotFoundError) as raised:
        forks.call("fail", "gone")
    assert raised.value.errno == 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("die", "helper was killed by signal 9"),
        ("unsendable", "helper has failed"),
        ("leave", r"helper ended itself \(0\)"),
        ("vanish", "helper ended without an answer"),
        ("fail_oddly", "OddError: odd"),
        ("fail_elsewhere", "OnlyThereError: there"),
    ],
)
def test_whatever_ends_it_is_one_error(forks: Forks, function: str, said: str):
    with pytest.raises(ProcessDiedError, match=said):
        forks.call(function)
    assert function != "unsendable" or "pickle" in forks.log.read_text()


def test_a_process_that_is_stuck_is_killed(forks: Forks, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forked_process, "_LOOK_S", 0.05)
    with pytest.raises(ProcessDiedError, match="helper was killed by signal 9"):
        forks.start("stop").result(silence_s=0.5)


def test_the_server_has_one_thread_and_its_processes_nothing_of_each_other(forks: Forks):
    stopped = forks.start("stop")
    stopped.pid()
    found = forks.call("surroundings")
    stopped.kill()
    with pytest.raises(ProcessDiedError, match="signal 9"):
        stopped.result()
    assert found["server"] == forks.begun[-1]
    assert found["threads of the server"] == 1
    assert "socket" not in found["descriptors"]
    assert "anon_inode" not in found["descriptors"]
    assert found["modules"] >= {"numpy"}
    assert found["blas"] == os.environ.get("OPENBLAS_NUM_THREADS")


def test_where_the_server_is_killed_its_processes_end_and_the_next_call_has_another(forks: Forks, tmp_path: Path):
    stopped = forks.start("stop")
    process, server = ProcessId.of(stopped.pid()), forks.begun[-1]
    os.kill(server, signal.SIGKILL)
    with pytest.raises(ProcessDiedError, match="helper ended with the one that it was forked from"):
        stopped.result()
    assert process.wait(END_S)
    assert forks.call("sizes", tmp_path)["pid"]
    assert forks.begun[-1] != server


def test_a_server_that_is_stuck_is_killed(forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forked_process, "_LOOK_S", 0.05)
    monkeypatch.setattr(forked_process, "_SERVER_SILENCE_S", 0.5)
    os.kill(forks.begun[-1], signal.SIGSTOP)
    process = forks.start("sizes", tmp_path)
    with pytest.raises(ProcessDiedError, match="ended with the one"):
        process.pid()
    monkeypatch.undo()
    assert forks.call("sizes", tmp_path)["pid"]


def test_when_it_is_closed_all_end(tmp_path: Path):
    forks = Forks(tmp_path / "log")
    stopped = forks.start("stop")
    process, server = ProcessId.of(stopped.pid()), ProcessId.of(forks.begun[0])
    os.kill(server.pid, signal.SIGSTOP)
    forks.server.close()
    assert process.wait(END_S)
    assert server.wait(END_S)


def test_a_module_that_cannot_be_imported_ends_the_server_and_says_why(tmp_path: Path):
    begun: list[int] = []
    server = ForkServer("forks", LogPlace(file=tmp_path / "log"), ("aegaeon.not_there",), begun.append)
    process = server.start(Call("helper", LogPlace(file=tmp_path / "log"), HERE, "vanish"))
    with pytest.raises(ProcessDiedError, match="ended with the one"):
        process.result()
    assert "No module named 'aegaeon.not_there'" in (tmp_path / "log").read_text()
    server.close()
