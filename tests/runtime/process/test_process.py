"""Processes that must not outlive others, and those that are waited for; real ones, also stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegaeon.runtime.process.process import ProcessId
from aegaeon.runtime.process.reaper import Reaper

WAIT_S = 20.0
_SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(_SLEEP) as process:
        yield process
        process.kill()


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def ends(pid_fd: int) -> bool:
    return bool(select.select([pid_fd], [], [], WAIT_S)[0])


def test_a_stopped_process_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    assert ProcessId.of(sleeper.pid).kill(WAIT_S)
    assert sleeper.wait(WAIT_S) == -signal.SIGKILL


def test_a_process_that_has_the_pid_of_another_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    earlier = ProcessId(sleeper.pid, ProcessId.of(sleeper.pid).started_ticks - 1)
    assert earlier.kill(WAIT_S)
    assert earlier.wait(WAIT_S)
    assert sleeper.poll() is None


def test_waiting_for_a_process_that_runs_ends_in_time(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert not process.wait(0.01)
    sleeper.kill()
    assert process.wait(WAIT_S)


def test_a_child_ends_with_its_parent_also_when_it_is_stopped() -> None:
    child = """
import signal
from aegaeon.runtime.process.process import die_with_parent
die_with_parent()
print(1, flush=True)
signal.pause()
"""
    parent = run(
        """
        import signal, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
        child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        print(child.pid, flush=True)
        signal.pause()
        """,
        child,
    )
    with parent:
        assert parent.stdout is not None
        fd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert ends(fd)
        os.close(fd)


def test_a_child_whose_parent_was_gone_before_it_could_ask_ends_at_once() -> None:
    with run("from aegaeon.runtime.process.process import die_with_parent; die_with_parent(1 << 22)") as child:
        assert child.wait(WAIT_S) == 1


def test_the_reaper_kills_what_a_killed_driver_leaves(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    driver = run(
        """
        import signal, sys
        from aegaeon.runtime.process.reaper import Reaper
        reaper = Reaper()
        reaper.watch(int(sys.argv[1]))
        print(reaper.process.pid, flush=True)
        signal.pause()
        """,
        sleeper.pid,
    )
    with driver:
        assert driver.stdout is not None
        reaper = ProcessId.of(int(driver.stdout.readline()))
        driver.kill()
        assert sleeper.wait(WAIT_S) == -signal.SIGKILL
        assert reaper.wait(WAIT_S)


def test_a_reaper_that_is_killed_itself_is_replaced_and_knows_of_all(sleeper: subprocess.Popen[bytes]) -> None:
    driver = run(
        """
        import os, signal, subprocess, sys
        from aegaeon.runtime.process.reaper import Reaper
        reaper, other = Reaper(), subprocess.Popen(["sleep", "1000"], start_new_session=True)
        reaper.watch(int(sys.argv[1]))
        os.kill(reaper.process.pid, signal.SIGKILL)
        reaper._process.wait()
        reaper.watch(other.pid)
        print(other.pid, flush=True)
        signal.pause()
        """,
        sleeper.pid,
    )
    with driver:
        assert driver.stdout is not None
        fd = os.pidfd_open(int(driver.stdout.readline()))
        driver.kill()
        assert sleeper.wait(WAIT_S) == -signal.SIGKILL
        assert ends(fd)
        os.close(fd)


def test_orphans_are_adopted_and_killed_but_not_those_that_are_spared() -> None:
    program = run(
        """
        import subprocess, sys
        from aegaeon.runtime.process.process import adopt_orphans, children, kill_children
        adopt_orphans()
        pause = "import signal; signal.pause()"
        spared = subprocess.Popen([sys.executable, "-c", pause])
        start = f"subprocess.Popen([sys.executable, '-c', {pause!r}], stdout=subprocess.DEVNULL)"
        parent = f"import subprocess, sys; print({start}.pid)"
        orphan = int(subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True).stdout)
        assert orphan in children()
        assert kill_children({spared.pid}, 20.0)
        assert children() == {spared.pid}
        spared.kill()
        """
    )
    with program:
        assert program.wait(WAIT_S) == 0


def test_what_the_supervisor_needs_imports_nothing_heavy() -> None:
    program = """
        import sys
        import aegaeon.cli.service.service, aegaeon.cli.service.child, aegaeon.cli.service.child_main, aegaeon.cli.serve
        print({"torch", "ray", "transformers", "fastapi", "uvicorn", "numpy"} & set(sys.modules))
    """
    with run(program) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "set()\n"


def test_a_reaper_that_took_the_place_of_another_is_told_and_leaves_nothing_of_that_open(
    sleeper: subprocess.Popen[bytes],
) -> None:
    reaper = Reaper()
    before, pipe = reaper.process, reaper._process.stdin
    assert before.kill(WAIT_S)
    reaper.watch(sleeper.pid)
    assert reaper.process != before
    assert pipe is not None
    assert pipe.closed
    reaper.close()
    assert sleeper.wait(WAIT_S) == -signal.SIGKILL


def test_the_reaper_needs_the_standard_library_only() -> None:
    import aegaeon.runtime.process.reaper as module

    code = f"import runpy; runpy.run_path({module.__file__!r})"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=Path("/"), check=False).returncode == 0
