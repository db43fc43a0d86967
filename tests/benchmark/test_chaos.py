"""The chaos benchmark must notice what it is there to notice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmark.chaos.clients import Client, HeardAnswer, Question, QuestionKind, Verdict, Watch, learn, questions
from benchmark.chaos.faults import Fault, Hit, Victims
from benchmark.chaos.main import Chaos, Idle, files_of_pools

EXPECTED = ("one two three",)
TOKENS = 3


def question(kind: QuestionKind = QuestionKind.STREAM, expected: tuple[str, ...] = EXPECTED) -> Question:
    return Question(kind, {"model": "m", "prompt": [1], "stream": True, "seed": 1}, expected, TOKENS)


def events(*texts: str, done: bool = True, tokens: int = TOKENS) -> Iterator[bytes]:
    for text in texts:
        yield b"data: " + json.dumps({"choices": [{"index": 0, "text": text}]}).encode() + b"\n\n"
    if done:
        yield b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def watch(*, may_cut: bool = False) -> Watch:
    return Watch(1.0, lambda _start_s: may_cut)


async def ask(answer: Callable[[httpx.Request], httpx.Response], seen: Watch) -> None:
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://pool") as http:
        await Client(0, http, [question()], seed=0)._once(question(), seen)


@pytest.mark.parametrize(
    ("texts", "done", "verdict"),
    [
        (("one ", "two three"), True, Verdict.RIGHT),
        (("one ", "two "), True, Verdict.WRONG),
        (("one ", "2 three"), True, Verdict.WRONG),
        (("one ", "two three", " three"), True, Verdict.DOUBLED),
        (("one ", "two "), False, Verdict.LOST),
    ],
)
async def test_every_answer_gets_the_verdict_that_it_deserves(texts: tuple[str, ...], done: bool, verdict: Verdict):
    seen = watch()
    await ask(lambda _request: httpx.Response(200, content=b"".join(events(*texts, done=done))), seen)
    assert seen.verdicts == {(QuestionKind.STREAM, verdict): 1}
    assert seen.bad == int(verdict is not Verdict.RIGHT)


@pytest.mark.parametrize(("tokens", "verdict"), [(2, Verdict.WRONG), (4, Verdict.DOUBLED)])
async def test_a_token_without_text_that_is_lost_or_doubled_is_noticed(tokens: int, verdict: Verdict):
    seen = watch()
    await ask(lambda _request: httpx.Response(200, content=b"".join(events(*EXPECTED, tokens=tokens))), seen)
    assert seen.verdicts == {(QuestionKind.STREAM, verdict): 1}
    assert f"told {tokens} tokens" in seen.complaints[0]


async def test_an_error_is_lost_and_silence_is_hung():
    def silent(_request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("nothing")

    seen = watch()
    await ask(lambda _request: httpx.Response(503, json={"error": {"code": "model_unavailable"}}), seen)
    await ask(silent, seen)
    assert seen.verdicts == {(QuestionKind.STREAM, Verdict.LOST): 1, (QuestionKind.STREAM, Verdict.HUNG): 1}
    assert "model_unavailable" in seen.complaints[0]


async def test_only_a_killed_server_excuses_a_connection_that_ends():
    seen = watch(may_cut=True)
    await ask(lambda _request: httpx.Response(200, content=b"".join(events("one ", done=False))), seen)
    await ask(lambda _request: httpx.Response(200, content=b"".join(events("won ", done=False))), seen)
    assert seen.verdicts == {(QuestionKind.STREAM, Verdict.CUT): 1, (QuestionKind.STREAM, Verdict.LOST): 1}


def test_what_is_left_of_an_answer_is_right_as_far_as_it_goes():
    answer = HeardAnswer.to(question())
    answer.add({"choices": [{"index": 0, "text": "one "}]})
    assert answer.verdict(question(QuestionKind.LEAVER)) is Verdict.RIGHT
    answer.add({"choices": [{"index": 0, "text": "one "}]})
    assert answer.verdict(question(QuestionKind.LEAVER)) is Verdict.WRONG


async def test_a_short_stop_is_learned_from_its_own_answer():
    def told(request: httpx.Request) -> httpx.Response:
        stops = json.loads(request.content).get("stop")
        return httpx.Response(200, content=b"".join(events("" if stops else "hello", tokens=2 if stops else 5)))

    transport = httpx.MockTransport(told)
    async with httpx.AsyncClient(transport=transport, base_url="http://pool") as http:
        known = await learn(http, question(QuestionKind.SHORT_STOP, ()))
    assert known.body["stop"] == ["he"]
    assert known.expected == ("",)
    assert known.tokens == 2


def test_a_cut_is_excused_from_the_kill_until_the_service_is_back():
    chaos = Chaos(Victims(0, ""), 1.0, (1.0, 1.0), random.Random(0))
    assert not chaos.may_cut(0.0)
    chaos.hits += [Hit(Fault.KILL, 1, 10.0, 11.0), Hit(Fault.SERVER, 2, 20.0, 24.0)]
    assert chaos.may_cut(15.0)
    assert not chaos.may_cut(24.0 + 6.0)


def test_what_a_pool_leaves_is_seen_wherever_its_folder_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    left = tmp_path / "aegaeon-1-abcdef"
    left.mkdir()
    assert str(left) in files_of_pools()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    assert str(left) not in files_of_pools()


@pytest.mark.parametrize(
    ("descriptors", "leaks"),
    [
        ({"driver 1": (100, 104), "server 2": (50, 90)}, False),  # clients' connections
        ({"driver 1": (100, 120)}, True),
        ({}, False),  # all were replaced
    ],
)
def test_a_driver_that_opens_ever_more_is_noticed(descriptors: dict[str, tuple[int, int]], leaks: bool):
    assert Idle(0, 0, descriptors).clean is not leaks


def test_descriptors_are_counted_process_by_process():
    code = "import os; os.open('/', os.O_RDONLY); os.open('/', os.O_RDONLY); print('open', flush=True); input()"
    command = [sys.executable, "-c", code, "ray::DriverActor"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "open\n"
        counted = Victims(os.getpid(), "").descriptors()
        driver.communicate("")
    assert counted == {f"driver {driver.pid}": 5}  # its three standard streams, too


ENDS_SLOWLY = """
import atexit, sys
from benchmark.command.interrupt import run_to_end

def told(word):
    print(word, flush=True)
    sys.stdin.readline()

def body():
    try:
        told("running")
    finally:
        told("ending")
    return 0

atexit.register(told, "ended")
sys.exit(run_to_end(body))
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["ending", "ended"])
def test_whoever_interrupts_again_while_it_ends_gets_no_traceback(when: str, second: signal.Signals):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", ENDS_SLOWLY]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line == "running\n":
                process.send_signal(signal.SIGTERM)
                continue
            if line.strip() == when:
                process.send_signal(second)
                if when == "ending":
                    continue  # that alone wakes it
            process.stdin.write("\n")
            process.stdin.flush()
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")


def test_questions_are_the_same_for_the_same_seed():
    assert questions(["a", "b"], 40, seed=3) == questions(["a", "b"], 40, seed=3)
    assert {asked.kind for asked in questions(["a"], 40, seed=3)} == set(QuestionKind)


def test_silences_of_a_stream_are_noted():
    seen = watch()
    seen.heard_s[1] = time.monotonic() - 2.0
    seen.hear(1)
    ((start_s, end_s),) = seen.silences
    assert end_s - start_s >= 2.0
