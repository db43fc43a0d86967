"""The benchmark's client against a small server that behaves, or misbehaves, as its models' names say."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from rich.console import Console

import aegaeon
from aegaeon.core.config import PoolConfig
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import Phase, PhaseSpan
from aegaeon.run_header import Load, Origin, RunHeader
from aegaeon.server.http.limits import RequestLimits
from aegaeon.server.openai.schema import CompletionRequest, parse
from aegaeon.workload import Arrival, write_csv
from benchmark import benchmark_e2e
from benchmark.command.errors import BenchmarkUsageError
from benchmark.e2e.job import LengthLimits, ReplayJob, TargetModel, plan_jobs
from benchmark.e2e.live_view import ReplayProgress
from benchmark.e2e.occupancy import Occupancy, occupancies, switches
from benchmark.e2e.options import parse_options
from benchmark.e2e.policy_choice import chosen_policy
from benchmark.e2e.pool import PoolError, PoolProcess
from benchmark.e2e.pool_state import PoolState
from benchmark.e2e.replay import Replay, Replayed, http_client, is_foreign, served_models
from plots.read.records import read_records

RECORD_KEYS = {
    "ttft",
    "qos",
    "per_token",
    "prefill_wait_time",
    "prefill_time",
    "decode_wait_time",
    "decode_time",
    "control_overhead",
    "block_overhead",
}


# --- a server --------------------------------------------------------------------------------------------------------


def _event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _text(text: str, **more: Any) -> str:
    return _event({"choices": [{"index": 0, "text": text, "finish_reason": None, **more}]})


def _timeline(tokens: int) -> dict[str, Any]:
    """A life on a clock of the server's own: arrival at 1000, first token at 1003, one every 0.5 s."""
    spans = [
        {"phase": "control", "start_s": 1000.0, "end_s": 1000.25, "instance": ""},
        {"phase": "switch", "start_s": 1000.5, "end_s": 1001.0, "instance": "prefill-0"},
        {"phase": "kv", "start_s": 1001.0, "end_s": 1001.5, "instance": "prefill-0"},
        {"phase": "prefill", "start_s": 1002.0, "end_s": 1003.0, "instance": "prefill-0"},
        {"phase": "decode", "start_s": 1003.0, "end_s": 1003.0 + 0.25 * (tokens - 1), "instance": "decode-0"},
    ]
    times_s = [1003.0 + 0.5 * index for index in range(tokens)]
    return {"arrival_s": 1000.0, "token_times_s": times_s, "spans": spans, "now_s": times_s[-1]}


async def _stream(model: str, tokens: int) -> AsyncIterator[str]:
    if model == "short":
        tokens -= 1
    if model == "tells-tokens":  # two tokens in the first chunk, then half a character
        yield _text("ab", token_ids=[1, 2])
        for _ in range(tokens - 2):
            yield _text("", token_ids=[3])
    elif model == "half-characters":
        yield _text("€")
    else:
        for _ in range(tokens):
            yield _text("x\u2028")
    if model == "breaks":
        yield _event({"error": {"message": "the engine failed", "type": "server_error"}})
        return
    if model == "cut":
        return
    extra = {} if model == "foreign" else {"aegaeon": _timeline(tokens)}
    yield _event({"choices": [], "usage": {"completion_tokens": tokens}, **extra})
    yield "data: [DONE]\n\n"


def _app(seen: list[dict[str, Any]]) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "first", "max_model_len": 64}, {"id": "second", "max_model_len": 64}]}

    @app.get("/admin/state")
    async def state() -> Any:
        instance = {"id": "decode-0", "role": "decode", "state": "running", "model": "poet", "requests": 3}
        return {"now_s": 1.0, "instances": [{**instance, "resident": ["poet", "baker"]}], "models": {}}

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        seen.append({**body, "headers": dict(request.headers)})
        if body["model"] == "busy":
            return JSONResponse({"error": {"message": "later", "code": "overloaded"}}, 429)
        if body["model"] == "plain-error":
            return Response("<html>", 502)
        return StreamingResponse(_stream(body["model"], body["max_tokens"]), media_type="text/event-stream")

    return app


class _Server(uvicorn.Server):
    """Runs in a thread, and says when it is up."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class FakeServer:
    """An address, and what was asked of it."""

    def __init__(self, url: str, seen: list[dict[str, Any]]) -> None:
        self.url = url
        self.seen = seen


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeServer]:
    seen: list[dict[str, Any]] = []
    server = _Server(_app(seen))
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    assert server.up.wait(30)
    yield FakeServer(f"http://127.0.0.1:{sock.getsockname()[1]}", seen)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def server(running_server: FakeServer) -> FakeServer:
    running_server.seen.clear()
    return running_server


class Journal:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def sent(self, job: ReplayJob) -> None:
        self.events.append(("sent", job.request_id))

    def first_token(self, job: ReplayJob) -> None:
        self.events.append(("first token", job.request_id))

    def done(self, job: ReplayJob, reply: Replayed) -> None:
        self.events.append(("done", job.request_id))


SLO = Slo(ttft_s=10.0, tpot_s=0.1)


async def _replay(url: str, jobs: list[ReplayJob], journal: Journal | None = None) -> list[Replayed]:
    async with http_client(url, timeout_s=20.0) as client:
        return await Replay(client, SLO, journal or Journal()).run(jobs)


def test_our_server_takes_what_the_benchmark_sends_it() -> None:
    body = json.dumps(ReplayJob("r", "m", 0.0, 7, 4).body(SLO, foreign=False)).encode()
    assert parse(CompletionRequest, body, RequestLimits()).max_tokens == 4
    assert "return_token_ids" in ReplayJob("r", "m", 0.0, 7, 4).body(SLO, foreign=True)


async def test_a_server_says_whether_it_is_ours(server: FakeServer) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "aegaeon"}]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://ours") as ours:
        assert not await is_foreign(ours)
    async with http_client(server.url, timeout_s=20.0) as theirs:
        assert await is_foreign(theirs)


async def _reply(url: str, model: str, tokens: int = 4) -> Replayed:
    return (await _replay(url, [ReplayJob("r", model, 0.0, 7, tokens)]))[0]


# --- one request -----------------------------------------------------------------------------------------------------


async def test_a_request_has_the_exact_lengths_and_asks_for_its_timeline(server: FakeServer) -> None:
    await _reply(server.url, "good")
    (sent,) = server.seen
    assert len(sent["prompt"]) == 7
    assert all(isinstance(token, int) for token in sent["prompt"])
    assert (sent["max_tokens"], sent["ignore_eos"], sent["stream"]) == (4, True, True)
    assert sent["slo"] == {"ttft_s": 10.0, "tpot_s": 0.1}
    assert (sent["headers"]["x-aegaeon-timeline"], sent["headers"]["x-request-id"]) == ("1", "r")


async def test_token_times_are_the_clients_own(server: FakeServer) -> None:
    before_s = time.monotonic()
    record = (await _reply(server.url, "good")).record
    assert record.error is None
    assert len(record.token_times_s) == 4
    assert 0 < record.token_times_s[0] <= record.token_times_s[-1] < time.monotonic() - before_s


async def test_a_chunk_may_have_several_tokens_or_none_that_show(server: FakeServer) -> None:
    times_s = (await _reply(server.url, "tells-tokens")).record.token_times_s
    assert len(times_s) == 4
    assert times_s[0] == times_s[1] <= times_s[2] <= times_s[3]


async def test_where_chunks_hide_tokens_the_servers_times_are_moved_to_this_clock(server: FakeServer) -> None:
    record = (await _reply(server.url, "half-characters")).record
    assert record.per_token_s[1:] == pytest.approx([0.5, 0.5, 0.5])
    # The timeline was made at its last token, and came at once: that token is here now.
    assert 0 < record.token_times_s[-1] < 10


async def test_parts_come_from_the_servers_timeline(server: FakeServer) -> None:
    reply = await _reply(server.url, "good", tokens=5)
    parts = reply.record.parts
    assert parts is not None
    assert parts.prefill_wait_s == pytest.approx(1.25)  # 3 - (control 0.25 + kv 0.5 + prefill 1)
    assert (parts.prefill_s, parts.control_s, parts.block_s) == pytest.approx((1.0, 0.25, 0.5))
    assert (parts.decode_wait_s, parts.decode_s) == pytest.approx((1.0, 1.0))  # 4 gaps of 0.5 s, steps of 0.25 s
    assert reply.spans[3] == PhaseSpan(Phase.PREFILL, 1002.0, 1003.0, "prefill-0")


async def test_a_foreign_server_has_no_parts(server: FakeServer) -> None:
    reply = await _reply(server.url, "foreign")
    assert (reply.record.error, reply.record.parts, reply.spans) == (None, None, ())


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("busy", "HTTP 429: overloaded"),
        ("plain-error", "HTTP 502"),
        ("short", "short output: 3 of 4 tokens"),
        ("breaks", "the engine failed"),
        ("cut", "stream cut off"),
    ],
)
async def test_failures_are_named_and_count_nothing(server: FakeServer, model: str, error: str) -> None:
    record = (await _reply(server.url, model)).record
    assert record.error == error
    assert (record.completed, record.slo_attainment, record.qos) == (False, 0.0, 0.0)


async def test_an_unreachable_server_fails_requests_not_the_replay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert (await _reply(f"http://127.0.0.1:{port}", "good")).record.error


# --- many ------------------------------------------------------------------------------------------------------------


async def test_replies_keep_the_order_of_jobs_and_each_job_is_reported_once(server: FakeServer) -> None:
    jobs = [ReplayJob(f"r{index}", "good", 0.02 * (index % 3), 3, 2) for index in range(9)]
    journal = Journal()
    replies = await _replay(server.url, jobs, journal)
    assert [reply.record.request_id for reply in replies] == [job.request_id for job in jobs]
    for job in jobs:
        own = [event for event, request_id in journal.events if request_id == job.request_id]
        assert own == ["sent", "first token", "done"]


async def test_requests_are_sent_at_their_times_not_before(server: FakeServer) -> None:
    record = (await _replay(server.url, [ReplayJob("late", "good", 0.2, 3, 2)]))[0].record
    assert record.arrival_s == 0.2
    assert record.token_times_s[0] >= 0.2


async def test_progress_counts_what_happens(server: FakeServer) -> None:
    jobs = [ReplayJob("a", "good", 0.0, 3, 2), ReplayJob("b", "busy", 0.0, 3, 2), ReplayJob("c", "good", 0.0, 3, 2)]
    progress = ReplayProgress(jobs)
    for job in jobs:
        progress.sent(job)
    progress.first_token(jobs[0])
    total = progress.total
    assert (total.planned, total.waiting, total.running, total.done) == (3, 2, 1, 0)
    async with http_client(server.url, 20.0) as client:
        again = ReplayProgress(jobs)
        await Replay(client, SLO, again).run(jobs)
    total = again.total
    assert (total.waiting, total.running, total.done, total.failed) == (0, 0, 3, 1)
    assert total.attainment == "66.7%"
    assert "3 of 3 requests done" in again.line()
    assert again.table().row_count == 2


async def test_the_pool_is_watched_while_traffic_runs(server: FakeServer) -> None:
    async with http_client(server.url, 20.0) as client:
        pool, progress = PoolState(client), ReplayProgress([])
        assert pool.table().row_count == 0
        async with pool.watched(), asyncio.timeout(20):
            while not pool.table().row_count:
                await client.get("/v1/models")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(pool.view(progress))
    assert "poet, baker" in console.export_text()
    assert pool.line(progress).endswith("decode-0 poet")


async def test_served_models_are_read_with_their_limits(server: FakeServer) -> None:
    async with http_client(server.url + "/", 20.0) as client:
        assert await served_models(client) == [TargetModel("first", 64), TargetModel("second", 64)]


def test_workload_models_map_onto_served_ones_in_order() -> None:
    arrivals = [Arrival(float(i), name, 5, 20) for i, name in enumerate(["m_02", "m_00", "m_01", "m_100", "m_02"])]
    jobs = plan_jobs(arrivals, [TargetModel("a"), TargetModel("b"), TargetModel("c")], LengthLimits())
    assert [job.model for job in jobs] == ["c", "a", "b", "a", "c"]
    assert len({job.request_id for job in jobs}) == 5


@pytest.mark.parametrize(
    ("limits", "context", "expected"),
    [
        (LengthLimits(), None, (900, 200)),
        (LengthLimits(max_input_tokens=100, max_output_tokens=50), None, (100, 50)),
        (LengthLimits(), 1000, (800, 200)),
        (LengthLimits(), 64, (1, 63)),
        (LengthLimits(max_output_tokens=16), 64, (48, 16)),
    ],
)
def test_lengths_are_cut_to_caps_and_context(
    limits: LengthLimits, context: int | None, expected: tuple[int, int]
) -> None:
    assert limits.apply(Arrival(0.0, "m", 900, 200), context) == expected


def test_prompts_differ_between_requests_and_not_between_runs() -> None:
    one, same, other = (ReplayJob(name, "m", 0.0, 40, 1).prompt for name in ("a", "a", "b"))
    assert one == same != other


# --- which model ran where -------------------------------------------------------------------------------------------


def test_occupancy_joins_what_one_model_did_and_counts_changes() -> None:
    def decode(start_s: float, end_s: float, instance: str = "decode-0") -> PhaseSpan:
        return PhaseSpan(Phase.DECODE, start_s, end_s, instance)

    timelines = [
        ("a", [decode(0.0, 1.0), decode(2.0, 3.0), PhaseSpan(Phase.KV, 1.5, 2.0, "decode-0")]),
        ("a", [decode(0.5, 1.2)]),
        ("b", [decode(1.2, 2.0), PhaseSpan(Phase.PREFILL, 0.0, 0.5, "prefill-0"), PhaseSpan(Phase.CONTROL, 0.0, 0.1)]),
    ]
    found = occupancies(timelines)
    assert found == {
        "decode-0": [Occupancy("a", 0.0, 1.2), Occupancy("b", 1.2, 2.0), Occupancy("a", 2.0, 3.0)],
        "prefill-0": [Occupancy("b", 0.0, 0.5)],
    }
    assert switches(found) == {"a": 2, "b": 2}


# --- the command -----------------------------------------------------------------------------------------------------


def _trace(directory: Path, models: list[str]) -> Path:
    path = directory / "synth-2-0.1-1.0-1.0.csv"
    write_csv([Arrival(0.01 * index, name, 5, 16) for index, name in enumerate(models)], path)
    return path


def test_the_command_writes_the_record_file(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AEGAEON_TTFT_SLO", "5")
    monkeypatch.setenv("AEGAEON_TPOT_SLO", "0.05")
    trace = _trace(tmp_path, ["synth_model_00", "synth_model_01", "synth_model_00"])
    out = tmp_path / "json"
    assert benchmark_e2e.main(["--base-url", server.url, "--trace", str(trace), "--out", str(out)]) == 0
    file, summary = sorted(out.iterdir())
    assert file.name == "run-2-0.1-1.0-1.0-ttft5.0-tpot0.05.json"
    header = RunHeader.read(json.loads(summary.read_text()))
    assert header is not None
    assert (header.origin, header.slo, header.version) == (Origin.MEASURED, Slo(5.0, 0.05), aegaeon.__version__)
    records = json.loads(file.read_text())
    assert len(records) == 3
    for entry in records.values():
        assert set(entry) == RECORD_KEYS
        assert len(entry["per_token"]) == 16
        assert entry["per_token"][0] == entry["ttft"]
        assert entry["prefill_time"] == pytest.approx(1.0)
    assert {request["model"] for request in server.seen} == {"first", "second"}
    output = capsys.readouterr().out
    assert "slo_attainment" in output
    assert "qos" in output


def test_records_say_the_policy_that_a_running_server_is_said_to_run(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = _trace(tmp_path, ["m"])
    arguments = ["--base-url", server.url, "--trace", str(trace), "--out", str(tmp_path / "json")]
    assert benchmark_e2e.main([*arguments, "--policy", "slack"]) == 0
    (outcome,) = read_records([tmp_path / "json"])
    assert (outcome.policy, str(outcome.source)) == ("slack", "measured, device not stated")
    assert outcome.load == Load(2, 0.1)
    assert benchmark_e2e.main([*arguments, "--policy", "sllm", "--measured-on", "8 x A10"]) == 0
    (outcome,) = read_records([tmp_path / "json"])
    assert (outcome.policy, str(outcome.source)) == ("sllm", "measured, 8 x A10")
    assert benchmark_e2e.main(arguments) == 0
    assert "tell it with --policy" in capsys.readouterr().out


def test_a_pool_that_is_started_here_is_told_its_policy(tmp_path: Path) -> None:
    """By the flag, the environment, the pool's file or the default, as ``aegaeon serve`` has it."""
    file = tmp_path / "pool.yaml"
    file.write_text("policy: sllm\n")
    assert chosen_policy(None, None, {}) == PoolConfig(models=()).policy
    assert chosen_policy(None, file, {}) == "sllm"
    assert chosen_policy(None, file, {"AEGAEON_POLICY": "aegaeon"}) == "aegaeon"
    assert chosen_policy("slack", file, {"AEGAEON_POLICY": "aegaeon"}) == "slack"
    with pytest.raises(BenchmarkUsageError, match="policy"):
        chosen_policy("slak", None, {})
    options = parse_options(["--models", "m=dir", "--policy", "aegaeon"])
    arguments = benchmark_e2e.pool_arguments(options, 1, Console())
    assert arguments[arguments.index("--policy") + 1] == "aegaeon"


def test_failed_requests_make_the_command_fail_and_are_marked_dropped(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def one_that_is_busy(_client: httpx.AsyncClient) -> list[TargetModel]:
        return [TargetModel("busy")]

    monkeypatch.setattr(benchmark_e2e, "served_models", one_that_is_busy)
    trace = _trace(tmp_path, ["m"])
    assert benchmark_e2e.main(["--base-url", server.url, "--trace", str(trace), "--out", str(tmp_path / "json")]) == 1
    file, _ = sorted((tmp_path / "json").iterdir())
    (entry,) = json.loads(file.read_text()).values()
    assert (entry["ttft"], entry["per_token"], entry["qos"], entry["decode_time"]) == (-1.0, [-1.0], 0.0, None)
    assert "1 failed: HTTP 429: overloaded" in capsys.readouterr().out


def test_synthetic_workloads_are_made_where_no_file_is(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "--num-model 3 --arrival-rate 20 --duration 0.3 --max-input-tokens 8 --max-output-tokens 4 --base-url"
    assert benchmark_e2e.main([*command.split(), server.url]) == 0
    assert "shipped quantile table" in capsys.readouterr().out
    assert max(len(request["prompt"]) for request in server.seen) <= 8
    assert sorted(file.name for file in (tmp_path / "plots" / "json").iterdir()) == [
        "run-3-20.0-1.0-1.0-ttft10.0-tpot0.1.json",
        "run-3-20.0-1.0-1.0-ttft10.0-tpot0.1.summary.json",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--base-url", "http://127.0.0.1:1", "--num-models", "1"],
        ["--base-url", "http://x", "--instances", "2"],
        ["--trace", "missing.csv"],
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert benchmark_e2e.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- a pool of our own -----------------------------------------------------------------------------------------------

# Starts a child in a session of its own, tells its pid, then does what the arguments say.
POOL_SCRIPT = """
import os, signal, subprocess, sys
stubborn = "stubborn" in sys.argv
code = "import signal, time\\n" + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" if stubborn else "")
code += "print('child is up', flush=True)\\ntime.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child", child.pid, flush=True)
if "fails" in sys.argv:
    sys.exit("no such folder")
print("ready http://127.0.0.1:4321", flush=True)
signal.pause()
"""


def _pool(log: Path, *arguments: str, ready_s: float = 30.0) -> PoolProcess:
    command = [sys.executable, "-c", POOL_SCRIPT]
    return PoolProcess(arguments, log, command=command, ready_s=ready_s, grace_s=0.5, kill_s=0.5)


def _child_pid(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("arguments", [(), ("stubborn",)])
def test_a_pool_is_gone_afterwards_with_all_that_descends_from_it(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    log = tmp_path / "pool.log"
    with _pool(log, *arguments) as pool:
        assert pool.url == "http://127.0.0.1:4321"
        assert pool.alive
        assert not _gone(_child_pid(log))
    assert not pool.alive
    assert _gone(_child_pid(log))


def test_a_pool_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "pool.log"
    with pytest.raises(PoolError, match="no such folder"), _pool(log, "fails"):
        pytest.fail("it was entered")
    assert _gone(_child_pid(log))


@pytest.fixture
def hears_interrupts() -> Iterator[None]:
    """Where the tests are a shell's background job, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_interrupts")
def test_interrupted_work_ends_the_pool_too(tmp_path: Path) -> None:
    log = tmp_path / "pool.log"

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt), _pool(log):
        asyncio.run(work())
    assert _gone(_child_pid(log))
