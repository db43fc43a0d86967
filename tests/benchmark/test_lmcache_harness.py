"""LMCache's harness: its command line and files, its workloads, and how answers are measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmark.lmcache_harness import experiment
from benchmark.lmcache_harness.config import COLUMNS, Usecase, WorkloadConfig
from benchmark.lmcache_harness.experiment import HarnessAnswer, ask
from benchmark.lmcache_harness.main import functions, load, main
from benchmark.lmcache_harness.tests import test_lmcache_local_cpu as local_cpu
from benchmark.lmcache_harness.workload import TextMaker, requests_of
from plots.process_result import main as process_result

TESTS = Path(__file__).parents[2] / "benchmark" / "lmcache_harness" / "tests.py"

OTHER_TESTS = """
def row(request):
    return {"expr_id": 0, "timestamp": 8.0 * request, "engine_id": 0, "request_id": request,
            "TTFT": 1.0 / (1 + request), "throughput": 20.0, "latency": 3.0,
            "context_len": 512, "query_len": 16, "gpu_memory": '{"gpu-0": 2048}',
            "prompt_tokens": 530, "cached_tokens": 512 * bool(request)}

def test_two_requests(model, ports):
    "Two of them."
    return [row(0), row(1)]

def check_ports(model, ports):
    assert ports == (8000, 8001)
    return [row(0)]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the tokenizer of a model for which every word is a token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "org-model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "others.py"
    path.write_text(OTHER_TESTS)
    return path


# --- the command


def test_the_usual_tests_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TESTS), "-l"]) == 0
    names = capsys.readouterr().out.split()
    assert names == [
        "test_lmcache_local_cpu",
        "test_chunk_prefill",
        "test_cache_compatibility",
        "test_vary_length_workload",
        "test_multi_turn",
    ]


def test_a_result_goes_to_a_file_of_the_functions_name_which_is_drawn(
    file: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(file), "-o", str(out), "-m", str(model), "-p", "8000", "8001"]) == 0
    path = out / "test_two_requests_org-model.csv"
    assert sorted(path.name for path in out.iterdir()) == [
        path.with_suffix(".csv").name,
        path.with_suffix(".json").name,
    ]
    rows = list(csv.DictReader(path.open()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["TTFT"] for row in rows] == ["1.0", "0.5"]
    assert json.loads(path.with_suffix(".json").read_text())["rows"][1]["cached_tokens"] == 512
    assert "0.50" in capsys.readouterr().out
    assert process_result([str(path)]) == 0
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_functions_are_chosen_by_a_pattern_and_told_the_ports(file: Path, model: Path, tmp_path: Path) -> None:
    assert [*functions(load(file), "_")] == ["test_two_requests", "check_ports"]
    assert main([str(file), "-f", "check", "-m", str(model), "-o", str(tmp_path), "-p", "8000", "8001"]) == 0
    assert (tmp_path / "check_ports_org-model.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.py"], "none.py is no Python file"),
        ([str(TESTS), "-f", "["], "is no regular expression"),
        ([str(TESTS), "-f", "nothing"], "no function that matches 'nothing'"),
        ([str(TESTS), "-m", "org/model"], "there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_is_no_result_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("a,b\n1,2\n")
    assert process_result([str(path)]) == 2
    assert "wrong.csv is no result of the harness" in capsys.readouterr().err


# --- workloads


def test_contexts_and_questions_are_as_long_as_wanted(model: Path) -> None:
    texts = TextMaker(model)
    requests = requests_of(WorkloadConfig(3, 8.0, 500, 16, 32), texts)
    assert [request.at_s for request in requests] == [0.0, 8.0, 16.0]
    assert len({request.context for request in requests}) == 1
    assert len({request.question for request in requests}) == 3
    assert 493 < texts.tokens(requests[0].context) <= 500
    assert texts.tokens(requests[0].question) <= 16


def test_contexts_that_vary_begin_with_the_one_before(model: Path) -> None:
    texts = TextMaker(model)
    requests = requests_of(WorkloadConfig(5, 8.0, 70, 16, 32, Usecase.VARY), texts)
    assert [texts.tokens(request.context) for request in requests] == [70, 140, 140, 210, 210]
    assert requests[1].context.startswith(requests[0].context)


# --- answers


def answer(*texts: str) -> bytes:
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    events = [*chunks, {"choices": [], "usage": usage}]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def client(replies: Iterator[httpx.Response]) -> httpx.AsyncClient:
    def reply(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["temperature"] == 0
        return next(replies)

    return httpx.AsyncClient(base_url="http://engine", transport=httpx.MockTransport(reply))


async def test_the_first_token_is_the_first_that_is_not_blank() -> None:
    engine = client(iter([httpx.Response(200, content=answer("", " ", "a", "b", "c"))]))
    measured = await ask(engine, "question", 5)
    assert measured.text == " abc"
    assert 0 < measured.ttft_s <= measured.latency_s
    assert (measured.prompt_tokens, measured.cached_tokens) == (9, 4)
    assert measured.throughput == pytest.approx(3 / (measured.latency_s - measured.ttft_s))


async def test_a_request_that_failed_is_counted_as_such() -> None:
    cut = answer("a").removesuffix(b"data: [DONE]\n\n")
    engine = client(iter([httpx.Response(429, content=b"{}"), httpx.Response(200, content=cut)]))
    assert [await ask(engine, "q", 5) for _ in range(2)] == [HarnessAnswer(), HarnessAnswer()]


def test_gpus_are_read_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert experiment.gpu_memory() == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 512\necho 7\n")
    tool.chmod(0o755)
    assert experiment.gpu_memory() == {"gpu-0": 512, "gpu-1": 7}


def test_every_engine_gets_the_same_requests(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual test, with engines that keep nothing running and answer at once."""
    asked: dict[str, list[str]] = {}

    class NoPool:
        def __init__(self, arguments: list[str], _log: Path, port: int) -> None:
            self.url = f"http://{arguments[-1]}:{port}"

        def __enter__(self) -> NoPool:
            return self

        def __exit__(self, *_: object) -> None: ...

    def reply(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][0]["content"]
        asked.setdefault(request.url.host, []).append(text)
        return httpx.Response(200, content=answer("a", "b"))

    monkeypatch.setattr(experiment, "PoolProcess", NoPool)
    transport = httpx.MockTransport(reply)
    plain = httpx.AsyncClient
    monkeypatch.setattr(experiment.httpx, "AsyncClient", lambda **options: plain(transport=transport, **options))
    monkeypatch.setattr(local_cpu.__module__ + ".GAP_S", 0.0)
    rows = local_cpu(model, (1, 2))
    assert sorted(asked) == ["off", "slo"]
    assert sorted(asked["off"]) == sorted(asked["slo"])
    assert len(asked["off"]) == 3 * (2 + 10)
    assert [(row["expr_id"], row["engine_id"], row["request_id"]) for row in rows[:4]] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)
    ]  # fmt: skip
    assert len(rows) == 3 * 2 * 10
