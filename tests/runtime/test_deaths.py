"""Instances that die and hang in a real pool: who takes over, what operators are told, what stays open.

The tests come in this order; the last one ends the service.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from aegaeon.runtime.process.run_folder import remove_abandoned
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree
from tests.worlds.served import WAIT_S, Stream, folders, gone, processes, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(
    model_paths: Callable[[int], dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PoolProcess]:
    log = tmp_path_factory.mktemp("deaths") / "log"
    options = ["--instances", "1", "--kv-cache", "64MiB", "--instance-timeout", "5"]
    with PoolProcess([f"m0={model_paths(1)['m0']}", *options], log) as pool:
        yield pool


def state(service: PoolProcess) -> dict[str, object]:
    (instance,) = httpx.get(f"{service.url}/admin/state", timeout=60).json()["instances"]
    return dict(instance)


def fork_servers(service: PoolProcess) -> set[int]:
    """The processes that instances are forked from."""
    return processes(service.pid, "node0-driver-fo")


def stream_of(service: PoolProcess) -> Stream:
    return Stream(service, range(10, 40), 450)


@pytest.mark.parametrize("victim", ["the instance", "the process that it was forked from"])
def test_whatever_is_killed_is_replaced_and_streams_go_on(service: PoolProcess, victim: str):
    killed, before = state(service)["pid"], fork_servers(service)
    expected = stream_of(service)
    expected.join(WAIT_S)
    stream = stream_of(service)
    assert stream.begun.wait(WAIT_S)
    for pid in [int(str(killed))] if victim == "the instance" else before:
        os.kill(pid, signal.SIGKILL)
    stream.join(WAIT_S)
    assert stream.text == expected.text
    until(lambda: state(service)["pid"] not in (None, killed), "the replacement")
    assert len(fork_servers(service)) == 1
    assert (fork_servers(service) == before) == (victim == "the instance")


def test_an_instance_that_is_stopped_is_told_of_and_replaced(service: PoolProcess):
    expected = stream_of(service)
    expected.join(WAIT_S)
    stopped = int(str(state(service)["pid"]))
    stream = stream_of(service)
    assert stream.begun.wait(WAIT_S)
    os.kill(stopped, signal.SIGSTOP)
    told: list[dict[str, object]] = []

    def is_told() -> bool:
        reply = httpx.get(f"{service.url}/ready", timeout=60)
        if reply.json()["problems"]:
            told.append({"code": reply.status_code, **reply.json()})
        return bool(told)

    until(is_told, "a word of it")
    assert told[0]["code"] == 503  # there is no other instance
    assert "node0-mixed-0" in str(told[0]["problems"])
    stream.join(WAIT_S)
    assert stream.text == expected.text
    until(lambda: state(service)["pid"] not in (None, stopped), "the replacement")
    assert stopped not in ProcessTree.now().running
    until(lambda: httpx.get(f"{service.url}/ready", timeout=60).status_code == 200, "readiness")


def test_nothing_outlives_a_supervisor_that_is_killed(service: PoolProcess) -> None:
    tree = ProcessTree.now().descendants({service.pid})
    for pid in processes(service.pid, "node0-") | processes(service.pid, "DriverActor"):  # driver, instances
        os.kill(pid, signal.SIGSTOP)
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: gone(tree), "every process has ended")
    remove_abandoned(os.environ)  # as the next start does, here, or has done elsewhere on this machine
    assert folders(service.pid) == []
