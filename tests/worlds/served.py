"""A service in processes of its own, as tests of its deaths see it: its processes, and clients with streams."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from aegaeon.runtime.process.run_folder import places
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree, title

WAIT_S = 600.0  # never waited for on a machine that works, but where it has much else to do
POLL_S = 0.05


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S:.0f} s"
        time.sleep(POLL_S)


def processes(root: int, part: str) -> set[int]:
    """Descendants whose name or command line has ``part``."""
    return {pid for pid in ProcessTree.now().descendants({root}) if part in title(pid)}


def gone(pids: set[int]) -> bool:
    """Whether none of them runs any more."""
    return not pids & ProcessTree.now().running.keys()


def folders(supervisor_pid: int) -> list[Path]:
    """What a service has, or left, where services have their folders; others may run at the same time."""
    return [path for place in places(os.environ) for path in place.glob(f"aegaeon*-{supervisor_pid}-*")]


class Stream(threading.Thread):
    """A client's greedy stream of model m0: its text, and whether it has begun."""

    def __init__(self, service: PoolProcess, prompt: Sequence[int], max_tokens: int) -> None:
        super().__init__()
        self.text = ""
        self.begun = threading.Event()
        self._url = f"{service.url}/v1/completions"
        self._body = {"model": "m0", "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
        self.start()

    def run(self) -> None:
        body = {**self._body, "stream": True, "ignore_eos": True}
        with httpx.Client(timeout=WAIT_S) as http, http.stream("POST", self._url, json=body) as reply:
            for line in reply.iter_lines():
                self.text += line.partition('"text":')[2].partition(',"')[0]
                if self.text:
                    self.begun.set()
