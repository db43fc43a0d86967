"""A driver that is killed while another stands by: that one takes over, with what is in memory."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree
from tests.worlds.served import WAIT_S, Stream, processes, until

STANDS_BY = "DriverActor.stand_by"


def drivers(service: PoolProcess) -> set[int]:
    return processes(service.pid, "ray::DriverActor") - processes(service.pid, STANDS_BY)


def stream_of(service: PoolProcess) -> Stream:
    return Stream(service, [3 + number % 90 for number in range(300)], 150)


def killed_under_a_stream(service: PoolProcess) -> str:
    """The text of a stream whose driver was killed when it had begun."""
    stream = stream_of(service)
    assert stream.begun.wait(WAIT_S)
    (driver,) = drivers(service)
    os.kill(driver, signal.SIGKILL)
    stream.join(WAIT_S)
    return stream.text


@pytest.mark.slow
def test_the_driver_that_stands_by_goes_on_with_kv_and_weights(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ["--instances", "1", "--kv-cache", "64MiB", "--standby-driver", "--log-file", str(log)]
    with PoolProcess([f"m0={model_paths(1)['m0']}", *options], tmp_path / "output") as service:
        until(lambda: processes(service.pid, STANDS_BY), "an heir")
        (stuck,) = processes(service.pid, STANDS_BY)
        expected = stream_of(service)
        expected.join(WAIT_S)
        os.kill(stuck, signal.SIGSTOP)  # of no use to anybody, which shows when it is needed
        assert killed_under_a_stream(service) == expected.text
        until(lambda: processes(service.pid, STANDS_BY) - {stuck}, "another heir")
        assert stuck not in ProcessTree.now().running
        (heir,) = processes(service.pid, STANDS_BY)
        assert killed_under_a_stream(service) == expected.text
        until(lambda: heir in drivers(service), "the heir at work")
    text = log.read_text()
    assert text.count("goes on with the KV and the weights") == 2
    assert (
        len(re.findall(r"of another driver finds the KV of (288|304) of its", text)) == 2
    )  # blocks of 16, prompt of 300
    assert not [line for line in text.splitlines() if "Traceback" in line]
