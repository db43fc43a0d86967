"""The service's own processes die, one after the other, under its clients: one pool, real processes, real kill -9.

The tests of the first service come in this order; the last one ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from aegaeon.runtime.process.process import adopt_orphans
from benchmark.e2e.pool import PoolProcess, aegaeon_command
from benchmark.e2e.process_tree import ProcessTree
from tests.worlds.served import WAIT_S, folders, gone, processes, until

pytestmark = pytest.mark.slow

PROMPT = list(range(10, 40))
TOKENS = 400


@pytest.fixture(scope="module")
def arguments(model_paths: Callable[[int], dict[str, Path]]) -> list[str]:
    models = [f"{name}={path}" for name, path in model_paths(1).items()]
    sizes = ["--kv-cache", "64MiB", "--weight-cache", "64MiB"]
    processes = ["--instances", "1", "--threads-per-instance", "1"]
    return [*models, *processes, "--grace", f"{WAIT_S:.0f}", *sizes]


@pytest.fixture(scope="module")
def service(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolProcess]:
    with PoolProcess(arguments, tmp_path_factory.mktemp("supervision") / "log") as pool:
        yield pool


@pytest.fixture
def client(service: PoolProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def expected(service: PoolProcess) -> str:
    """The text of an undisturbed request."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=WAIT_S) as client:
        return "".join(streamed(client))


def streamed(client: openai.OpenAI) -> Iterator[str]:
    chunks = client.completions.create(
        model="m0",
        prompt=PROMPT,
        max_tokens=TOKENS,
        stream=True,
        temperature=1.0,
        seed=3,
        extra_body={"ignore_eos": True},
    )
    for chunk in chunks:
        if chunk.choices:
            yield chunk.choices[0].text


def streamed_while(client: openai.OpenAI, strike: Callable[[], object]) -> str:
    """The text of a request that was under way when ``strike`` was called."""
    text, struck = "", False
    for piece in streamed(client):
        text += piece
        if not struck and len(text) > 20:
            strike()
            struck = True
    assert struck
    return text


def one(root: int, part: str) -> int:
    [pid] = processes(root, part)
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_driver_that_is_killed_or_stuck_is_a_pause(
    service: PoolProcess, client: openai.OpenAI, expected: str, number: signal.Signals
) -> None:
    driver, instances = one(service.pid, "DriverActor"), processes(service.pid, "node0-mixed")

    def strike() -> None:
        for instance in instances:
            os.kill(instance, signal.SIGSTOP)  # they cannot end by themselves
        os.kill(driver, number)

    assert instances
    assert streamed_while(client, strike) == expected
    assert gone({driver, *instances})


def test_a_server_that_is_killed_is_replaced_and_its_requests_are_released(
    service: PoolProcess, client: openai.OpenAI, expected: str
) -> None:
    driver, server = one(service.pid, "DriverActor"), one(service.pid, "server_process")
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        streamed_while(client, lambda: os.kill(server, signal.SIGKILL))
    # No connection is refused meanwhile: the first waits until there is a server.
    assert "".join(streamed(client)) == expected
    assert one(service.pid, "DriverActor") == driver
    assert httpx.get(f"{service.url}/ready").status_code == 200

    def released() -> bool:
        [node] = httpx.get(f"{service.url}/admin/state").json()["nodes"]
        return bool(node["kv_used_bytes"] == 0)

    until(released, "the blocks of the dead server's request are free")


@pytest.mark.parametrize("victim", ["pool_process", "raylet/raylet"])
def test_a_pool_that_is_killed_or_loses_its_ray_is_replaced_whole(
    service: PoolProcess, client: openai.OpenAI, expected: str, victim: str
) -> None:
    server, pool = one(service.pid, "server_process"), one(service.pid, "pool_process")
    old, struck = ProcessTree.now().descendants({pool}), one(service.pid, victim)
    assert streamed_while(client, lambda: os.kill(struck, signal.SIGKILL)) == expected
    assert gone(old)
    assert one(service.pid, "server_process") == server


def test_sigterm_lets_running_requests_finish_and_takes_no_more(
    service: PoolProcess, client: openai.OpenAI, expected: str
) -> None:
    tree = ProcessTree.now().descendants({service.pid})

    def terminate() -> None:
        os.kill(service.pid, signal.SIGTERM)
        until(refused, "new connections are refused")

    def refused() -> bool:
        try:
            return httpx.get(f"{service.url}/ready").status_code == 503
        except httpx.TransportError:
            return True

    assert streamed_while(client, terminate) == expected
    assert service.wait(WAIT_S) == 0
    assert gone(tree)


# --- starts that are cut short --------------------------------------------------------------------------------------


@contextlib.contextmanager
def starting(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service that is not waited for; nothing of it may be left at the end."""
    adopt_orphans(True)
    with log.open("wb") as file:
        process = subprocess.Popen([*aegaeon_command(), "serve", *arguments, "--port", "0"], stdout=file, stderr=file)
    try:
        yield process
        process.wait(WAIT_S)
        ProcessTree.now().reap_adopted({process.pid})
        assert folders(process.pid) == []
    finally:
        process.kill()
        process.wait()
        adopt_orphans(False)


PHASES = {"before it says anything": None, "before Ray": "pool_process", "with Ray": "raylet/raylet"}


@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_before_it_is_ready_leaves_nothing(arguments: list[str], tmp_path: Path, phase: str) -> None:
    with starting(arguments, tmp_path / "log") as process:
        part = PHASES[phase]
        if part is None:
            until(lambda: b"listening on" in (tmp_path / "log").read_bytes(), phase)
        else:
            until(lambda: processes(process.pid, part), phase)
        tree = ProcessTree.now().descendants({process.pid})
        process.terminate()
        assert process.wait(WAIT_S) == 130
        assert gone(tree - {process.pid})
        assert b"Traceback" not in (tmp_path / "log").read_bytes()


def test_a_busy_port_is_told_before_anything_heavy_is_imported(arguments: list[str]) -> None:
    program = """
import socket, sys
from aegaeon.cli import main
with socket.create_server(("127.0.0.1", 0)) as busy:
    try:
        main(["serve", *sys.argv[1:], "--port", str(busy.getsockname()[1])])
    except SystemExit as end:
        print(end.code, {"torch", "ray", "transformers", "fastapi", "uvicorn"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert run.stdout == "2 set()\n"
    assert "in use" in run.stderr


@pytest.mark.parametrize(
    "mistake", [["."], ["free", "--dtype", "int3"], ["free", "--learn", "none"], ["free", "--heads", "3"]]
)
def test_what_cannot_be_made_is_told_before_anything_heavy_is_imported(tmp_path: Path, mistake: list[str]) -> None:
    (tmp_path / "full").touch()
    program = """
import sys
from aegaeon.cli import main
try:
    main(["make-model", "llama", *sys.argv[1:]])
except SystemExit as end:
    print(end.code, {"torch", "transformers", "tokenizers"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *mistake], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.stdout == "2 set()\n"
