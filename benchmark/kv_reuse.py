"""What it takes to answer a prompt whose beginning was computed before, on a real pool.

    python3 benchmark/kv_reuse.py [--model DIR] [--rounds 5]

Two pools of one instance serve one model (a small one that is made, if none is named): one keeps the KV of ended
requests, one does not (``--prefix-cache off``). The other is idle while one is measured; what is compared alternates.
Then a third, alone, which keeps KV on disk (``--kv-disk``), is started anew for every prompt.

- *again*: a prompt of 2,048 tokens, and the same once more: the time to the first token.
- *conversation*: ten turns, each the whole conversation so far and some more: how many tokens are computed.
- *choices*: four answers to a prompt of 512 tokens: how many of its tokens are computed.
- *distinct*: prompts that have nothing in common, on both pools: what keeping costs those who get nothing of it.
- *restart*: a prompt of 2,048 tokens, and the same once more after the service was stopped and started: the time to the
  first token. The files have left the kernel's memory in between.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
from rich.console import Console
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.core.config import PoolConfig
from aegaeon.json_file import read_object
from benchmark.command.errors import BenchmarkError
from benchmark.command.main import add_measuring_options, run_measuring
from benchmark.command.result_file import write_result
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.small_models import BENCH_MODELS_DIR, CACHE_DIR, bench_models, ensure_models

_LONG_TOKENS, _SHARED_TOKENS, _DISTINCT_TOKENS, _DISTINCT = 2048, 512, 256, 8
_TURNS, _SYSTEM_WORDS, _TURN_WORDS, _ANSWER_TOKENS = 10, 300, 100, 24
_CHOICES = 4
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One streamed completion. ``computed``: tokens of its prompt that were not there."""

    ttft_s: float
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    text: str

    @property
    def computed(self) -> int:
        return self.prompt_tokens - self.cached_tokens


class Client:
    """Asks one pool for completions of token ids."""

    def __init__(self, url: str, vocabulary: int, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S)
        self._vocabulary = vocabulary
        self._random = random.Random(seed)

    def prompt(self, tokens: int) -> list[int]:
        """Token ids that nobody has sent before."""
        return [self._random.randrange(3, self._vocabulary) for _ in range(tokens)]

    def words(self, count: int) -> str:
        """Some text that nobody has sent before."""
        return " ".join(self._random.choice(_WORDS) for _ in range(count))

    def ask(self, prompt: Sequence[int] | str, new_tokens: int = 1, **fields: Any) -> Reply:
        """The reply to a prompt, whole."""
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        begin_s = time.perf_counter()
        came_s: list[float] = []
        texts: list[str] = []
        usage: Mapping[str, Any] = {}
        with self._http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
                came_s += [time.perf_counter()] * bool(chunk.get("choices"))
                texts += [choice["text"] for choice in chunk.get("choices", ())]
                usage = chunk.get("usage") or usage
        if not (came_s and usage):
            raise BenchmarkError(f"the pool sent no output for a prompt of {len(prompt)}")
        return Reply(
            came_s[0] - begin_s,
            usage["prompt_tokens"],
            usage["completion_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            "".join(texts),
        )

    def stored_blocks(self) -> int:
        """Blocks of KV that the pool has on disk, as reported last."""
        (node,) = self._http.get("/admin/state").raise_for_status().json()["nodes"]
        return 0 if node["kv_disk"] is None else int(node["kv_disk"]["blocks"])

    def counts(self) -> tuple[int, int]:
        """Tokens of prompts that have begun so far, and of these, those that were there."""
        (node,) = self._http.get("/admin/state").raise_for_status().json()["nodes"]
        return node["prompt_tokens"], node["cached_tokens"]


def again(client: Client) -> tuple[float, float]:
    """Seconds to the first token of a long prompt, and of the same once more."""
    prompt = client.prompt(_LONG_TOKENS)
    return client.ask(prompt).ttft_s, client.ask(prompt).ttft_s


def conversation(client: Client) -> tuple[int, int]:
    """What all turns but the first took: tokens that were computed, and those that were new."""
    text = client.words(_SYSTEM_WORDS)
    computed = new = before = 0
    for turn in range(_TURNS):
        text += " " + client.words(_TURN_WORDS)
        reply = client.ask(text, _ANSWER_TOKENS)
        text += reply.text
        if turn:
            computed, new = computed + reply.computed, new + reply.prompt_tokens - before
        before = reply.prompt_tokens + reply.new_tokens
    return computed, new


def choices(client: Client) -> int:
    """Tokens of a prompt that were computed for all of its choices together."""
    before, until_s = client.counts(), time.monotonic() + _TIMEOUT_S
    client.ask(client.prompt(_SHARED_TOKENS), _ANSWER_TOKENS, n=_CHOICES, temperature=1.0, seed=1)
    while (after := client.counts())[0] - before[0] < _CHOICES * _SHARED_TOKENS:
        if time.monotonic() > until_s:
            raise BenchmarkError("the pool does not count the tokens of its prompts: see its log")
        time.sleep(0.1)  # the pool reports a few times a second
    return (after[0] - before[0]) - (after[1] - before[1])


def distinct(client: Client) -> float:
    """Seconds that prompts with nothing in common take, one after the other."""
    prompts = [client.prompt(_DISTINCT_TOKENS) for _ in range(_DISTINCT)]
    begin_s = time.perf_counter()
    for prompt in prompts:
        client.ask(prompt, 8)
    return time.perf_counter() - begin_s


def restart(start: Callable[[], PoolProcess], folder: Path, vocabulary: int, seed: int) -> tuple[float, float]:
    """Seconds to the first token of a long prompt, and of the same when the service was started anew."""
    with start() as pool:
        client = Client(pool.url, vocabulary, seed)
        client.ask("warm up", 8)
        prompt, before = client.prompt(_LONG_TOKENS), client.stored_blocks()
        first_s, until_s = client.ask(prompt).ttft_s, time.monotonic() + _TIMEOUT_S
        while client.stored_blocks() < before + _LONG_TOKENS // PoolConfig(()).block_tokens:
            if time.monotonic() > until_s:
                raise BenchmarkError("the pool does not write the KV of a prompt to disk: see its log")
            time.sleep(0.1)  # the pool reports a few times a second
    for file in folder.iterdir():
        forget(file)
    with start() as pool:
        client = Client(pool.url, vocabulary, seed)
        client.ask("warm up", 8)
        again = client.ask(prompt)
    if not again.cached_tokens:
        raise BenchmarkError(f"the pool found nothing on disk: see {folder} and the pool's log beside it")
    return first_s, again.ttft_s


def forget(file: Path) -> None:
    """Have a file read from the disk next time."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave."""

    first_s: float
    again_s: float
    turn_computed: int
    turn_new: int
    choices_computed: int
    distinct_kept_s: float
    distinct_off_s: float
    restart_first_s: float = 0.0
    restart_again_s: float = 0.0


def one_round(keeps: Client, off: Client, number: int) -> Round:
    """All of it once; which pool goes first alternates."""
    pair = [("keeps", keeps), ("off", off)][:: 1 if number % 2 else -1]
    distinct_s = {name: distinct(client) for name, client in pair}
    return Round(*again(keeps), *conversation(keeps), choices(keeps), distinct_s["keeps"], distinct_s["off"])


def results(rounds: Sequence[Round]) -> dict[str, float]:
    """Ratios, each the median of those of the rounds."""
    return {
        "again": median(each.again_s / each.first_s for each in rounds),
        "conversation": median(each.turn_computed / each.turn_new for each in rounds),
        "choices": median(each.choices_computed / _SHARED_TOKENS for each in rounds),
        "distinct": median(each.distinct_kept_s / each.distinct_off_s for each in rounds),
        "restart": median(each.restart_again_s / each.restart_first_s for each in rounds),
    }


def show(console: Console, rounds: Sequence[Round], ratios: Mapping[str, float]) -> None:
    """A table of what was measured."""
    table = Table(title="KV that is kept, on a real pool", title_justify="left")
    for column in ("", "measured", "ratio", "wanted"):
        table.add_column(column, justify="left" if column in ("", "measured") else "right")
    first, later = (median(getattr(each, name) for each in rounds) for name in ("first_s", "again_s"))
    computed, new = (median(getattr(each, name) for each in rounds) for name in ("turn_computed", "turn_new"))
    shared = median(each.choices_computed for each in rounds)
    before, after = (median(getattr(each, name) for each in rounds) for name in ("restart_first_s", "restart_again_s"))
    kept, off = (median(getattr(each, name) for each in rounds) for name in ("distinct_kept_s", "distinct_off_s"))
    rows = (
        (f"a prompt of {_LONG_TOKENS} tokens again", f"first token {first:.3f} s, then {later:.3f} s", "again", 0.1),
        (f"{_TURNS} turns of a conversation", f"{computed:.0f} tokens computed, {new:.0f} new", "conversation", 1.15),
        (f"{_CHOICES} choices of {_SHARED_TOKENS} tokens", f"{shared:.0f} tokens computed", "choices", 1.1),
        ("distinct prompts, kept and off", f"{kept:.2f} s, {off:.2f} s", "distinct", 1.01),
        ("again after a restart", f"first token {before:.3f} s, then {after:.3f} s", "restart", 0.2),
    )
    for what, measured, ratio, most in rows:
        table.add_row(what, measured, f"{ratios[ratio]:.3f}", f"<= {most}")
    console.print(table)


def measure(options: argparse.Namespace, console: Console) -> list[Round]:
    """Serve the model, and ask."""
    folder = options.model or ensure_models(bench_models(1), BENCH_MODELS_DIR, console.print)["small-00"]
    vocabulary = read_object(folder / "config.json").get("vocab_size")
    if not isinstance(vocabulary, int):
        raise BenchmarkError(f"{folder}/config.json names no vocab_size, from which prompts could be drawn")
    arguments = [f"m={folder}", "--instances", "1", "--threads-per-instance", "1", "--kv-cache", "1GiB"]
    with ExitStack() as stack:
        clients: list[Client] = []
        for policy in ("slo", "off"):
            pool = PoolProcess([*arguments, "--prefix-cache", policy], options.work / f"{policy}.log")
            clients.append(Client(stack.enter_context(pool).url, vocabulary, options.seed))
            clients[-1].ask("warm up", 8)
        keeps, off = clients
        rounds = [one_round(keeps, off, number) for number in range(options.rounds)]
    with TemporaryDirectory(prefix="kv-disk-", dir=options.work) as folder:
        disk = [*arguments, "--kv-disk", f"{folder},8GiB"]
        for number, one in enumerate(rounds):
            pair = restart(
                lambda: PoolProcess(disk, options.work / "disk.log"), Path(folder), vocabulary, options.seed + number
            )
            rounds[number] = replace(one, restart_first_s=pair[0], restart_again_s=pair[1])
            console.print(f"round {number + 1} of {options.rounds}: {asdict(rounds[number])}", highlight=False)
    return rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model's folder  [a small one, made once]")
    add_measuring_options(parser, rounds=5, work=CACHE_DIR / "kv-reuse")
    options, console = parser.parse_args(arguments), make_console()

    def body(_spinners: frozenset[int]) -> int:
        rounds = measure(options, console)
        ratios = results(rounds)
        show(console, rounds, ratios)
        write_result(
            options.out / "kv_reuse.json", "kv reuse", {"ratios": ratios, "rounds": [asdict(each) for each in rounds]}
        )
        return 0

    return run_measuring("kv_reuse", body)


if __name__ == "__main__":
    sys.exit(main())
