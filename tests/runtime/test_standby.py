"""A driver that is killed while another stands by: that one takes over, with what is in memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree

PROMPT = [3 + number % 90 for number in range(300)]
WAIT_S = 240.0  # never waited for on a machine that works


def until(what: str, holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"{what} did not come to pass"
        time.sleep(0.05)


def processes(service: PoolProcess, title: bytes) -> set[int]:
    """Those whose command line has this in it."""
    found = set()
    for pid in ProcessTree.now().descendants({service.pid}):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if title in line:
            found.add(pid)
    return found


def drivers(service: PoolProcess) -> set[int]:
    return processes(service, b"ray::DriverActor") - processes(service, b"DriverActor.stand_by")


class Stream(threading.Thread):
    """A client's stream: its text, and whether it has begun."""

    def __init__(self, service: PoolProcess) -> None:
        super().__init__()
        self.text = ""
        self.begun = threading.Event()
        self._url = f"{service.url}/v1/completions"
        self.start()

    def run(self) -> None:
        body = {"model": "m0", "prompt": PROMPT, "max_tokens": 150, "stream": True, "temperature": 0}
        body["ignore_eos"] = True
        with httpx.Client(timeout=WAIT_S) as http, http.stream("POST", self._url, json=body) as reply:
            for line in reply.iter_lines():
                self.text += line.partition('"text":')[2].partition(',"')[0]
                if self.text:
                    self.begun.set()


def killed_under_a_stream(service: PoolProcess) -> str:
    """The text of a stream whose driver was killed when it had begun."""
    stream = Stream(service)
    assert stream.begun.wait(WAIT_S)
    (driver,) = drivers(service)
    os.kill(driver, signal.SIGKILL)
    stream.join(WAIT_S)
    return stream.text


def test_the_driver_that_stands_by_goes_on_with_kv_and_weights(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ["--instances", "1", "--kv-cache", "64MiB", "--standby-driver", "--log-file", str(log)]
    with PoolProcess([f"m0={model_paths(1)['m0']}", *options], tmp_path / "output") as service:
        until("an heir", lambda: processes(service, b"DriverActor.stand_by"))
        (stuck,) = processes(service, b"DriverActor.stand_by")
        expected = Stream(service)
        expected.join(WAIT_S)
        os.kill(stuck, signal.SIGSTOP)  # of no use to anybody, which shows when it is needed
        assert killed_under_a_stream(service) == expected.text
        until("another heir", lambda: processes(service, b"DriverActor.stand_by") - {stuck})
        assert stuck not in ProcessTree.now().running
        (heir,) = processes(service, b"DriverActor.stand_by")
        until("a spare for each driver", lambda: len(processes(service, b"InstanceActor.wait")) == 2)
        assert killed_under_a_stream(service) == expected.text
        until("the heir at work", lambda: heir in drivers(service))
    text = log.read_text()
    assert text.count("goes on with the KV and the weights") == 2
    assert text.count("finds the KV of 288 of its") == 2  # whole blocks of 16 of a prompt of 300
    assert not [line for line in text.splitlines() if "Traceback" in line]
