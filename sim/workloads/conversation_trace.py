"""Traces of agents' conversations in the form of kv-cache-tester (``agentic_claudecode_public.jsonl.gz``).

A line is a conversation::

    {"id", "block_size": 64, "requests": [{"t": seconds from its start, "in", "out": tokens,
                                           "hash_runs": [[first id, how many], ...]}, ...]}

Ids are of whole blocks of the prompt, local to the conversation; what an output adds has none until a later prompt
names it. Requests of sub-agents and such as ask for nothing are left out.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aegaeon.workload import Arrival, NamedBlocks, WorkloadError


def is_conversations(path: Path) -> bool:
    """Whether a file begins with a conversation. Raises ``WorkloadError``."""
    return any('"requests"' in line for line in _head(path))


def read_conversations(path: Path, rate_per_s: float, seed: int = 0) -> list[Arrival]:
    """All requests by time, where so many conversations begin a second (Poisson). Raises ``WorkloadError``."""
    stream = np.random.default_rng(seed)
    arrivals: list[Arrival] = []
    start_s = 0.0
    for number, line in enumerate(_lines(path), 1):
        start_s += float(stream.exponential(1.0 / rate_per_s))
        try:
            arrivals += _conversation(json.loads(line), start_s, number)
        except KeyError as error:
            raise WorkloadError(f"{path}:{number}: no {error} in it") from error
        except (ValueError, TypeError) as error:
            raise WorkloadError(f"{path}:{number}: {str(error)[:300]}") from error
    if not arrivals:
        raise WorkloadError(f"{path}: no request in it")
    return sorted(arrivals, key=lambda arrival: arrival.time_s)


def _conversation(values: Mapping[str, Any], start_s: float, line: int) -> Iterator[Arrival]:
    scope = str(values["id"])
    for request in values["requests"]:
        if "in" in request and request["in"] and request["out"]:
            runs = tuple((int(first), int(count)) for first, count in request["hash_runs"])
            content = NamedBlocks(int(values["block_size"]), runs, scope)
            time_s = round(start_s + float(request["t"]), 6)
            content = content.cut(int(request["in"]) // content.block_tokens)
            yield Arrival(time_s, "agents", int(request["in"]), int(request["out"]), line, content)


def within(arrivals: list[Arrival], limit_tokens: int) -> list[Arrival]:
    """Conversations as far as they fit a context: each ends before its first request that does not."""
    closed: set[str] = set()
    kept = []
    for arrival in arrivals:
        scope = arrival.content.scope if arrival.content is not None else ""
        if arrival.input_tokens + arrival.output_tokens > limit_tokens:
            closed.add(scope)
        elif scope not in closed:
            kept.append(arrival)
    return kept


def _head(path: Path) -> Iterator[str]:
    for line in _lines(path):
        yield line[:1000]
        return


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise WorkloadError(f"{path}: cannot be read ({error})") from error
