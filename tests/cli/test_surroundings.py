"""A whole service where its surroundings are as bad as they come, and on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from benchmark.e2e.process_tree import ProcessTree

ROOT = Path(__file__).resolve().parent.parent.parent
AEGAEON = Path(sys.executable).with_name("aegaeon")
LONG = "AEGAEON_LONG_TESTS" in os.environ
PATIENCE_S = 300  # where the machine has much else to do
HOSTILE = {
    "HOME": "/nonexistent",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "LC_ALL": "C",
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TMPDIR": "/nonexistent",
}


def wait_for(what: Callable[[], object]) -> object:
    """What it gives once that is something."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline_s, "nothing came of it"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def serving(
    arguments: list[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running service and its address; what it says goes to ``out`` and ``err`` of the folder."""
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(arguments, stdout=stdout, stderr=stderr, env=environment, umask=0, cwd=folder)

    def url() -> str | None:
        assert process.poll() is None, err.read_text()
        found = re.search(r"^ready (\S+)$", out.read_text(), re.MULTILINE)
        return found and found[1]

    try:
        yield process, str(wait_for(url))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


def listening_addresses(pids: set[int]) -> set[str]:
    """Local addresses, in hexadecimal, of every TCP socket on which these processes listen."""
    inodes: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                inodes[f"socket:[{inode}]"] = local.partition(":")[0]
    links = (link for pid in pids for link in _open_files(pid))
    return {inodes[link] for link in links if link in inodes}


def _open_files(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):  # the process, or the file, is not there any more
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(file.readlink()))
    return found


@pytest.mark.slow
def test_a_service_needs_little_of_its_surroundings_and_is_reached_by_nobody_else(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path
) -> None:
    long = tmp_path / ("long_job_folder_" * 5)
    long.mkdir()
    gone = tmp_path / "gone"
    command = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec {AEGAEON} serve m0={model_paths(1)['m0']} --port 0"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XDG_RUNTIME_DIR", "AEGAEON_CACHE_DIR")
    }
    environment |= HOSTILE | {"TMPDIR": str(long)}
    arguments = ["bash", "-c", f"{command} --instances 1 --kv-cache 64MiB"]
    with serving(arguments, tmp_path, environment) as (process, url), httpx.Client(trust_env=False) as client:
        body = {"model": "m0", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}
        answer = client.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)
        assert answer.json()["usage"]["completion_tokens"] == 4

        family = {process.pid} | ProcessTree.now().descendants({process.pid})
        loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
        addresses = listening_addresses(family)
        assert addresses
        assert addresses <= loopback

        (folder,) = Path("/tmp").glob(f"aegaeon-{process.pid}-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "auth_token").stat().st_mode) == 0o600
        assert not list(Path("/tmp").glob(f"{folder.name}/**/.ray"))

        (instance,) = client.get(f"{url}/admin/state").json()["instances"]
        os.kill(instance["pid"], signal.SIGSEGV)
        said = tmp_path / "err"
        wait_for(lambda: "Segmentation fault" in said.read_text(errors="replace"))
    assert process.returncode == 0
    text = said.read_text(errors="replace")
    assert f"{instance['id']}: Fatal Python error: Segmentation fault" in text
    assert "This is a bug" not in text
    assert not Path(HOSTILE["HOME"]).exists()
    assert not folder.exists()
    kept = re.search(r"kept in (\S+)$", text, re.MULTILINE)
    assert kept is not None
    assert "Segmentation fault" in (Path(kept[1]) / f"{instance['id']}.log").read_text(errors="replace")
    shutil.rmtree(kept[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster with a token, of two nodes where that is asked for; the environment in which they are found."""
    folder = Path("/tmp") / f"rays-{os.getpid()}"  # Ray's sockets need a short path
    folder.mkdir(mode=0o700)
    (folder / "token").write_text(secrets.token_hex(32))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    nodes: list[subprocess.Popen[bytes]] = []

    def start(index: int, *flags: str) -> None:
        """Ray itself gives a start up after 30 s, which a busy machine may need more than once."""
        for _ in range(5):
            if started(index, *flags):
                return
        raise AssertionError((folder / f"node{index}").read_text())

    def started(index: int, *flags: str) -> bool:
        ray = Path(sys.executable).with_name("ray")
        command = [ray, "start", "--block", "--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "80000000"]
        command += ["--resources", f'{{"node_{index}": 1}}', "--disable-usage-stats", *flags]
        with (folder / f"node{index}").open("wb") as said:
            nodes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
        wait_for(lambda: b"Ray runtime started" in (folder / f"node{index}").read_bytes() or nodes[-1].poll())
        if nodes[-1].poll() is not None:
            nodes.pop()
            return False
        return True

    try:
        start(0, "--head", "--port", "0", "--include-dashboard", "false")
        if LONG:
            start(1, "--address", (folder / "ray" / "ray_current_cluster").read_text())
        yield environment
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="two Ray nodes take two cores for minutes: set AEGAEON_LONG_TESTS=1")
def test_the_artifact_guides_benchmark_runs_on_two_nodes(cluster: dict[str, str], tmp_path: Path) -> None:
    """Its own line, but for the sizes; ``auto`` finds the cluster, whatever else runs on this machine."""
    line = ["--nnodes", "2", "--num-model", "2", "--arrival-rate=1", "--duration", "4", "--max-output-tokens", "4"]
    environment = cluster | {"AEGAEON_LOG_FILE": str(tmp_path / "pool.log"), "RAY_DEDUP_LOGS": "0"}
    environment |= {"AEGAEON_KV_CACHE": "64MiB", "AEGAEON_WEIGHT_CACHE": "64MiB"}
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmark" / "benchmark_e2e.py", *line, "--instances", "1", "--max-input-tokens", "8"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    log = (tmp_path / "pool.log").read_text()
    assert "node0-driver[" in log
    assert "node1-driver[" in log


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_says_so(
    cluster: dict[str, str], model_paths: Callable[[int], dict[str, Path]]
) -> None:
    environment = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH_")}
    ended = subprocess.run(
        [AEGAEON, "serve", f"m0={model_paths(1)['m0']}", "--port", "0", "--ray-address", "auto", "--nodes", "2"],
        env=environment | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "asks for its token: set RAY_AUTH_MODE=token" in ended.stderr
