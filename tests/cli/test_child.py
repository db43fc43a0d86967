"""A service's own processes where the machine has no room for another one."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from aegaeon.cli.service import service
from aegaeon.cli.service.child import Child
from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ProcessDied, ServiceDiedError, ServiceReport
from aegaeon.runtime.process.backoff import Pauses
from aegaeon.runtime.process.process import adopt_orphans
from aegaeon.runtime.process.process_log import LogPlace
from aegaeon.runtime.process.run_folder import RunFolder


def no_room(*_: object, **__: object) -> NoReturn:
    raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.fixture
def supervisor() -> Iterator[None]:
    """This process is one for a while; then it takes signals again, and no orphans any more."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    adopt_orphans(False)


def test_a_process_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: pair)
    monkeypatch.setattr(subprocess, "Popen", no_room)
    with pytest.raises(BlockingIOError):
        Child("server", "aegaeon.cli.service.server_process")
    assert [end.fileno() for end in pair] == [-1, -1]


@pytest.mark.usefixtures("supervisor")
def test_a_process_that_cannot_be_started_is_tried_again_like_one_that_died(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_room)
    monkeypatch.setattr(service, "PROCESS_PAUSES", Pauses(0.0, 0.0))
    reports: list[ServiceReport] = []
    config = PoolConfig(models=(), instances=())
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(ServiceDiedError, match="7 times in a row"):
        service.run_service(config, sock, reports.append, RunFolder(tmp_path), LogPlace(None, tmp_path))
    deaths = [report for report in reports if isinstance(report, ProcessDied)]
    assert len(deaths) == 6
    assert {(death.name, "could not be started" in death.reason) for death in deaths} == {("pool", True)}
