"""The service as an operator runs it: real processes, real HTTP, real kill -9.

The tests of the service come in this order; the last one ends it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree
from tests.worlds.served import WAIT_S, gone, processes

pytestmark = pytest.mark.slow

PROMPT = list(range(10, 40))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def service(model_paths: Callable[[int], dict[str, Path]], log: Path) -> Iterator[PoolProcess]:
    models = [f"{name}={path}" for name, path in model_paths(3).items()]
    options = ["--instances", "prefill=1,decode=2", "--kv-cache", "256MiB"]
    with PoolProcess([*models, *options], log) as pool:
        yield pool


@pytest.fixture
def client(service: PoolProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def instances(service: PoolProcess) -> dict[str, dict[str, object]]:
    state = httpx.get(f"{service.url}/admin/state").json()
    return {instance["id"]: instance for instance in state["instances"]}


def own_files(service_pid: int, pids: set[int]) -> set[Path]:
    """What a service could leave: its folder, and shared memory that its processes have mapped."""
    mapped = {
        line.split(maxsplit=5)[5]
        for pid in pids
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "/dev/shm/" in line
    }
    return {*map(Path, mapped), *Path("/tmp").glob(f"aegaeon-{service_pid}-*")}


def stream_ids(client: openai.OpenAI, model: str, new_tokens: int) -> Iterator[str]:
    """The text of each token, greedy."""
    chunks = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=new_tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    for chunk in chunks:
        if chunk.choices:
            yield chunk.choices[0].text


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_only_instances_have_torch(service: PoolProcess):
    kinds = ("server_process", "pool_process", "DriverActor", "fork_server")
    having = {kind: [has_torch(pid) for pid in processes(service.pid, kind)] for kind in kinds}
    assert having == dict(zip(kinds, ([False], [False], [False], [True] * 4), strict=True))


def test_the_openai_client_talks_to_every_model(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["m0", "m1", "m2"]
    for model in ("m0", "m1", "m2"):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0
        )
        assert answer.usage is not None
        assert 1 <= answer.usage.completion_tokens <= 8
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="m9", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="m0", prompt=PROMPT * 20, max_tokens=4)
    assert long.value.code == "context_length_exceeded"


def test_killing_the_instance_that_answers_is_a_pause_not_an_error(service: PoolProcess, client: openai.OpenAI):
    expected = "".join(stream_ids(client, "m0", 400))
    text, killed = "", None
    for piece in stream_ids(client, "m0", 400):
        text += piece
        if killed is None and len(text) > 20:
            running = [i for i in instances(service).values() if i["state"] == "running" and i["role"] == "decode"]
            if running:
                killed = running[0]
                os.kill(int(str(killed["pid"])), signal.SIGKILL)
    assert killed is not None, "the stream was over before an instance could be killed"
    assert text == expected
    # It is replaced, and the pool goes on.
    assert "".join(stream_ids(client, "m1", 10))


def test_a_dropped_connection_frees_the_request(service: PoolProcess):
    body = {"model": "m2", "prompt": PROMPT, "max_tokens": 450, "stream": True, "ignore_eos": True}
    with httpx.Client(timeout=30) as http, http.stream("POST", f"{service.url}/v1/completions", json=body) as reply:
        next(reply.iter_lines())
    with httpx.Client(timeout=30) as http:
        for _ in range(400):  # bounded by the requests, each of which takes milliseconds
            node = http.get(f"{service.url}/admin/state").json()["nodes"][0]
            if node["kv_used_bytes"] == 0:
                return
    pytest.fail("the request's blocks were not freed")


def test_a_terminated_service_leaves_nothing_behind(service: PoolProcess, log: Path):
    children = ProcessTree.now().descendants({service.pid})
    assert len(children) > 2
    files = own_files(service.pid, children)
    assert files
    os.kill(service.pid, signal.SIGTERM)
    assert service.wait(WAIT_S) == 0
    assert gone(children)
    assert "raylet" not in log.read_text()  # Ray has much to say of processes that were to end
    assert not [path for path in files if path.exists()]


def test_models_that_cannot_be_served_are_named_with_the_reason(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    run = subprocess.run(
        [sys.executable, "-m", "aegaeon", "serve", f"bad={tmp_path}", "--port", "0", "--kv-cache", "64MiB"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2
    assert "bad" in run.stderr
    assert "Traceback" not in run.stderr
    assert re.search(r"mamba", run.stderr, re.IGNORECASE)
