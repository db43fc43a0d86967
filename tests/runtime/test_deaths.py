"""Instances that die and hang in a real pool: who takes over, what operators are told, what stays open."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree

PROMPT = list(range(10, 40))
WAIT_S = 240.0  # never waited for on a machine that works


@pytest.fixture(scope="module")
def service(
    model_paths: Callable[[int], dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PoolProcess]:
    log = tmp_path_factory.mktemp("deaths") / "log"
    options = ["--instances", "1", "--kv-cache", "64MiB", "--spare-processes", "1", "--instance-timeout", "5"]
    with PoolProcess([f"m0={model_paths(1)['m0']}", *options], log) as pool:
        yield pool


def until(what: str, holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"{what} did not come to pass"
        time.sleep(0.05)


def state(service: PoolProcess) -> dict[str, object]:
    (instance,) = httpx.get(f"{service.url}/admin/state", timeout=60).json()["instances"]
    return dict(instance)


def spares(service: PoolProcess) -> set[int]:
    """Processes that have come up and wait to become an instance."""
    found = set()
    for pid in ProcessTree.now().descendants({service.pid}):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if b"InstanceActor.wait" in title:
            found.add(pid)
    return found


class Stream(threading.Thread):
    """A client's stream: its text, and whether it was well ended."""

    def __init__(self, service: PoolProcess) -> None:
        super().__init__()
        self.text = ""
        self.begun = threading.Event()
        self._url = f"{service.url}/v1/completions"
        self.start()

    def run(self) -> None:
        body = {"model": "m0", "prompt": PROMPT, "max_tokens": 450, "stream": True, "temperature": 0}
        body["ignore_eos"] = True
        with httpx.Client(timeout=WAIT_S) as http, http.stream("POST", self._url, json=body) as reply:
            for line in reply.iter_lines():
                self.text += line.partition('"text":')[2].partition(',"')[0]
                if self.text:
                    self.begun.set()


def test_a_spare_process_takes_the_place_of_an_instance_that_is_killed(service: PoolProcess):
    until("a spare", lambda: spares(service))
    (spare,) = spares(service)
    killed = state(service)["pid"]
    expected = Stream(service)
    expected.join(WAIT_S)
    stream = Stream(service)
    assert stream.begun.wait(WAIT_S)
    os.kill(int(str(killed)), signal.SIGKILL)
    stream.join(WAIT_S)
    assert stream.text == expected.text
    until("the replacement", lambda: state(service)["pid"] not in (None, killed))
    assert state(service)["pid"] == spare
    until("another spare", lambda: spares(service) - {spare})


def test_an_instance_that_is_stopped_is_told_of_and_replaced(service: PoolProcess):
    expected = Stream(service)
    expected.join(WAIT_S)
    stopped = int(str(state(service)["pid"]))
    stream = Stream(service)
    assert stream.begun.wait(WAIT_S)
    os.kill(stopped, signal.SIGSTOP)
    told: list[dict[str, object]] = []

    def is_told() -> bool:
        reply = httpx.get(f"{service.url}/ready", timeout=60)
        if reply.json()["problems"]:
            told.append({"code": reply.status_code, **reply.json()})
        return bool(told)

    until("a word of it", is_told)
    assert told[0]["code"] == 503  # there is no other instance
    assert "node0-mixed-0" in str(told[0]["problems"])
    stream.join(WAIT_S)
    assert stream.text == expected.text
    until("the replacement", lambda: state(service)["pid"] not in (None, stopped))
    assert stopped not in ProcessTree.now().running
    until("readiness", lambda: httpx.get(f"{service.url}/ready", timeout=60).status_code == 200)
