"""Workloads: seeded arrivals x lengths in, requests out; CSV files and published traces too.

Runs as a script from anywhere, with numpy alone::

    python3 aegaeon/workload.py --num-models 8 10 12 --arrival-rate 0.1 0.5 --duration 120
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import logging
import os
import re
import sys
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate, chain
from pathlib import Path
from reprlib import repr as shown
from types import MappingProxyType
from typing import Any, Protocol, Self, TextIO

import numpy as np
from numpy.typing import NDArray

MIN_OUTPUT_TOKENS = 16
SHAREGPT_VARIABLE = "AEGAEON_SHAREGPT_PATH"
CSV_COLUMNS = ("Request Time", "Model Name", "Input Length", "Output Length")
QUANTILE_TABLE = Path(__file__).parent / "data" / "sharegpt_lengths.csv"
_LOG = logging.getLogger(__name__)


class WorkloadError(ValueError):
    """A file or a value that no workload can be made from; the message names it."""


@dataclass(frozen=True, slots=True)
class NamedBlocks:
    """What the leading tokens of a request are, as far as anybody says: ids of whole blocks of ``block_tokens``.

    An id stands for a block's tokens and all before them; two requests of one model and ``scope`` that have an id in
    common begin alike. ``runs``: (first id, how many that follow on each other), in order of tokens. They may go on
    into the output.
    """

    block_tokens: int
    runs: tuple[tuple[int, int], ...]
    scope: str = ""
    _ends: tuple[int, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or any(first < 0 or count < 1 for first, count in self.runs):
            raise ValueError("blocks of at least 1 token are named by numbers from 0 on")
        object.__setattr__(self, "_ends", tuple(accumulate(count for _, count in self.runs)))

    @classmethod
    def of_ids(cls, block_tokens: int, ids: Iterable[int], scope: str = "") -> Self:
        """The ids one by one."""
        runs: list[tuple[int, int]] = []
        for one in ids:
            first, count = runs[-1] if runs else (one, 0)
            if first + count == one:
                runs[-1:] = [(first, count + 1)]
            else:
                runs.append((one, 1))
        return cls(block_tokens, tuple(runs), scope)

    def __len__(self) -> int:
        return self._ends[-1] if self.runs else 0

    def __getitem__(self, index: int) -> int:
        """The id of a block."""
        run = bisect_right(self._ends, index)
        first, count = self.runs[run]
        return first + count - (self._ends[run] - index)

    def cut(self, blocks: int) -> Self:
        """The first blocks only."""
        runs, left = [], blocks
        for first, count in self.runs:
            if left > 0:
                runs.append((first, min(count, left)))
            left -= count
        return replace(self, runs=tuple(runs))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload: when (seconds from its start), for which model, and how long; and what it begins with,
    where that is known."""

    time_s: float
    model: str
    input_tokens: int
    output_tokens: int
    line: int = field(default=0, compare=False, repr=False)  # of the file it was read from; 0 where it was not
    content: NamedBlocks | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.time_s < float("inf"):
            raise ValueError(f"the request time must not be negative, got {self.time_s} s")
        if not self.model:
            raise ValueError("the model name is empty")
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"lengths must be at least 1 token, got {self.input_tokens} and {self.output_tokens}")


# --- lengths ---------------------------------------------------------------------------------------------------------


class LengthSource(Protocol):
    """A joint distribution of prompt and output lengths."""

    @property
    def description(self) -> str:
        """Where the lengths come from, in one line for people."""
        ...

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Lengths [n, 2] (input, output; tokens) from uniform draws [n, 2] in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class QuantileTable:
    """Independent marginals, each interpolated between its quantiles: probability [q], tokens [q, 2]."""

    description: str
    probability: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @classmethod
    def shipped(cls) -> QuantileTable:
        """The table of ShareGPT lengths that comes with the package."""
        table = np.loadtxt(QUANTILE_TABLE, delimiter=",", comments=("#", "probability"))
        text = f"shipped quantile table {QUANTILE_TABLE.name} (set {SHAREGPT_VARIABLE} to draw from the dataset itself)"
        return cls(text, table[:, 0], table[:, 1:])

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        columns = [np.interp(uniform[:, i], self.probability, self.tokens[:, i]) for i in (0, 1)]
        return np.rint(np.stack(columns, axis=1)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ObservedLengths:
    """Pairs that occurred together, each as likely as any other: tokens [n, 2]."""

    description: str
    tokens: NDArray[np.int64]

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        pairs: NDArray[np.int64] = self.tokens[(uniform[:, 0] * len(self.tokens)).astype(np.int64)]
        return pairs


TokenCounter = Callable[[str], int]


def estimate_tokens(text: str) -> int:
    """Tokens of a text without a tokenizer: one per 4 UTF-8 bytes, what BPE vocabularies reach on English prose."""
    return -(-len(text.encode(errors="surrogatepass")) // 4)  # half a character, as some files have them, counts too


def tokenizer_counter(directory: Path) -> TokenCounter:
    """Count with the ``tokenizer.json`` of a model directory (needs the ``tokenizers`` package)."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise WorkloadError(f"{directory}: no tokenizer.json; --tokenizer needs a model directory that has one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers has no kinds of them
        raise WorkloadError(f"{file}: {error}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def sharegpt_lengths(path: Path, count: TokenCounter = estimate_tokens) -> ObservedLengths:
    """Lengths of a ShareGPT file: the human turns so far are the prompt, the next gpt turn is the output."""
    try:
        conversations = json.loads(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}; {SHAREGPT_VARIABLE} must name a ShareGPT JSON file") from error
    except (ValueError, RecursionError) as error:
        raise WorkloadError(f"{path}: not a JSON file ({error})") from error
    try:
        pairs = [pair for talk in conversations for pair in _turn_lengths(talk["conversations"], count)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WorkloadError(f"{path}: expected a list of {{conversations: [{{from, value}}]}} ({error!r})") from error
    if not pairs:
        raise WorkloadError(f"{path}: no human turn that a gpt turn answers")
    how = "estimated as UTF-8 bytes / 4" if count is estimate_tokens else "counted by the tokenizer"
    return ObservedLengths(f"{len(pairs)} turns of {path}, tokens {how}", np.array(pairs, dtype=np.int64))


def _turn_lengths(turns: Iterable[Mapping[str, str]], count: TokenCounter) -> Iterator[tuple[int, int]]:
    prompt_tokens = 0
    for turn in turns:
        if turn["from"] in ("human", "user"):
            prompt_tokens += count(turn["value"])
        elif turn["from"] in ("gpt", "assistant"):
            output_tokens = count(turn["value"])
            if prompt_tokens and output_tokens:
                yield prompt_tokens, output_tokens


def default_lengths(environment: Mapping[str, str], count: TokenCounter = estimate_tokens) -> LengthSource:
    """The ShareGPT file that the environment names, else the shipped table."""
    path = environment.get(SHAREGPT_VARIABLE)
    return sharegpt_lengths(Path(path), count) if path else QuantileTable.shipped()


# --- synthetic workloads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """Independent Poisson arrivals of ``models`` models, ``rate_per_s`` each, scaled ShareGPT lengths."""

    models: int
    rate_per_s: float
    duration_s: float = 120.0
    input_scale: float = 1.0
    output_scale: float = 1.0
    seed: int = 0
    max_context_tokens: int = 32768

    def __post_init__(self) -> None:
        if self.models < 1:
            raise WorkloadError(f"--num-models must be at least 1, got {self.models}")
        for flag, value in (
            ("--arrival-rate", self.rate_per_s),
            ("--duration", self.duration_s),
            ("--inlen-scale", self.input_scale),
            ("--outlen-scale", self.output_scale),
        ):
            if not 0 < value < float("inf"):
                raise WorkloadError(f"{flag} must be positive, got {value}")
        if self.seed < 0:
            raise WorkloadError(f"--seed must not be negative, got {self.seed}")
        if self.max_context_tokens <= MIN_OUTPUT_TOKENS:
            raise WorkloadError(f"--max-context must be more than {MIN_OUTPUT_TOKENS}, got {self.max_context_tokens}")

    @property
    def label(self) -> str:
        """What file names carry, e.g. ``8-0.1-1.0-1.0``."""
        return f"{self.models}-{self.rate_per_s}-{self.input_scale}-{self.output_scale}"

    @property
    def file_name(self) -> str:
        return f"synth-{self.label}.csv"


def synthesize(spec: SyntheticSpec, lengths: LengthSource) -> list[Arrival]:
    """The workload of a spec, by arrival time, times in whole milliseconds.

    Each model has random streams of its own, from (seed, model, rate): more models, another length source or another
    duration leave what they have in common unchanged.
    """
    arrivals = [arrival for index in range(spec.models) for arrival in _model_arrivals(spec, index, lengths)]
    return sorted(arrivals, key=lambda arrival: (arrival.time_s, arrival.model))


def _model_arrivals(spec: SyntheticSpec, index: int, lengths: LengthSource) -> list[Arrival]:
    limit = int(spec.duration_s * spec.rate_per_s + 1e-9)  # 0.29 * 100 is 28.999...: the product is meant in decimals
    entropy = (spec.seed, index, round(spec.rate_per_s * 1e6))
    gap_stream, length_stream = (np.random.default_rng(child) for child in np.random.SeedSequence(entropy).spawn(2))
    times_s = np.cumsum(gap_stream.exponential(1.0 / spec.rate_per_s, limit))
    times_s = np.floor(times_s[times_s < spec.duration_s] * 1000.0) / 1000.0
    tokens = _scaled(lengths.draw(length_stream.random((limit, 2))), spec)
    name = f"synth_model_{index:02d}"
    return [
        Arrival(float(time_s), name, int(inputs), int(outputs))
        for time_s, (inputs, outputs) in zip(times_s, tokens, strict=False)
    ]


def _scaled(tokens: NDArray[np.int64], spec: SyntheticSpec) -> NDArray[np.int64]:
    """Scale lengths [n, 2], then cut them: outputs of at least 16 tokens, input + output within the context."""
    inputs = np.maximum(1, np.rint(tokens[:, 0] * spec.input_scale)).astype(np.int64)
    outputs = np.maximum(MIN_OUTPUT_TOKENS, np.rint(tokens[:, 1] * spec.output_scale)).astype(np.int64)
    inputs = np.minimum(inputs, spec.max_context_tokens - MIN_OUTPUT_TOKENS)
    return np.stack([inputs, np.minimum(outputs, spec.max_context_tokens - inputs)], axis=1)


def spread(arrivals: Sequence[Arrival], models: Sequence[str], seed: int = 0) -> list[Arrival]:
    """Give each request to one of ``models``, all equally likely: for traces that name only one model. Requests of one
    scope stay together."""
    chosen = np.random.default_rng(seed).integers(0, len(models), len(arrivals)).tolist()
    homes: dict[str, int] = {}
    for place, arrival in enumerate(arrivals):
        if arrival.content is not None and arrival.content.scope:
            chosen[place] = homes.setdefault(arrival.content.scope, chosen[place])
    return [replace(arrival, model=models[index]) for arrival, index in zip(arrivals, chosen, strict=True)]


# --- files -----------------------------------------------------------------------------------------------------------


def write_csv(arrivals: Iterable[Arrival], path: Path) -> None:
    """Write the artifact's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for arrival in arrivals:
            clock = _format_clock(arrival.time_s)
            writer.writerow((clock, arrival.model, arrival.input_tokens, arrival.output_tokens))


def _format_clock(seconds: float) -> str:
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}.{ms % 1000:03d}"


def _parse_clock(text: Any) -> float:
    parts = text.split(":") if isinstance(text, str) else ()
    if len(parts) != 3:
        raise ValueError(f"{shown(text)} is not a time of the form HH:MM:SS.mmm")
    return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])


def _parse_date(text: Any) -> float:
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} is not a date")
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- traces ----------------------------------------------------------------------------------------------------------

TIME_UNITS: Mapping[str, float] = MappingProxyType({"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9})
"""Seconds of each unit."""

_TIMES = (  # names of columns and fields, as ``_plain`` writes them
    *("request time", "timestamp", "req time", "arrival time", "arrival timestamp", "arrived at", "time"),
    *("timestamp s", "timestamp ms", "arrival time s", "arrival time ms", "time s", "time ms"),
)
_MODELS = ("model name", "model", "adapter dir")
_INPUTS = (
    *("input length", "contexttokens", "request tokens", "prompt len", "prompt length", "input len"),
    *("input tokens", "prompt tokens", "context tokens", "num prefill tokens"),
)
_OUTPUTS = (
    *("output length", "generatedtokens", "response tokens", "output len", "response length"),
    *("output tokens", "generated tokens", "completion tokens", "num decode tokens"),
)
_KNOWN_COLUMNS = (
    "Request Time, Model Name, Input Length, Output Length (the artifact's); TIMESTAMP, ContextTokens, GeneratedTokens "
    "(Azure's); Timestamp, Model, Request tokens, Response tokens (BurstGPT's); req_time, adapter_dir, prompt_len, "
    "output_len (VTC's)"
)
_KNOWN_FIELDS = "timestamp, input_length, output_length (Mooncake's), and model where there are several"
_LEAST_SINCE_1970 = (("ns", 1e17), ("us", 1e14), ("ms", 1e11))
"""Numbers from here on are of that unit: in seconds they would be years beyond 5000."""
_LONGEST_LEAD_S = 86_400.0
"""A clock whose first request comes later than this was not started for the trace."""
_LONGEST_MEAN_GAP_S = 30.0
"""Whole numbers in JSON lines that are further apart are milliseconds: few traces have so few requests."""
_MOONCAKE_BLOCK_TOKENS = 512
_MOST_TOKENS = 2**31 - 1
"""Nobody has more; a larger number is no length."""
_WRONG_LINE = (ValueError, OverflowError, RecursionError, csv.Error)
"""What parsers raise, depending on how a line is wrong."""
_TOLD_CHARS = 300
"""Of what is wrong with a line, which may have very long values."""


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a trace calls the things that count. Without a model all requests are for ``one_model``.

    ``unit`` of times, where the names tell it. ``ids``: of blocks, where there are some.
    """

    time: str
    inputs: str
    outputs: str
    model: str | None
    one_model: str
    unit: str | None
    ids: str | None = None

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Case, underscores and blanks around do not matter. Raises ``KeyError`` for what is missing."""
        known = {_plain(name): name for name in names}
        time, inputs, outputs = (_one_of(known, wanted) for wanted in (_TIMES, _INPUTS, _OUTPUTS))
        model = next((known[name] for name in _MODELS if name in known), None)
        told = "ms" if "hash ids" in known else _plain(time).rpartition(" ")[2]  # hash_ids: Mooncake's lines
        one_model = "azure" if inputs == "ContextTokens" else "mooncake" if inputs == "input_length" else "trace"
        return cls(time, inputs, outputs, model, one_model, told if told in TIME_UNITS else None, known.get("hash ids"))

    def arrival(self, values: Mapping[str, Any], time: float, line: int) -> Arrival:
        """Raises ``ValueError`` or ``KeyError`` where a value is missing or is not what it must be."""
        model = _model_name(values[self.model]) if self.model else self.one_model
        inputs, outputs = _tokens(values[self.inputs]), _tokens(values[self.outputs])
        content = _whole_blocks(values[self.ids], inputs) if self.ids else None
        return Arrival(time, model, inputs, outputs, line, content)

    def asks_for_nothing(self, values: Mapping[str, Any]) -> bool:
        """Whether a request has no output, or no prompt: one that failed, in most traces."""
        return 0 in (_tokens(values[self.inputs]), _tokens(values[self.outputs]))


def _whole_blocks(ids: Any, prompt_tokens: int) -> NamedBlocks:
    """Mooncake's ``hash_ids``: the last is of a block that the prompt may not fill, which has no name here."""
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ValueError(f"{shown(ids)} are no ids of blocks")
    return NamedBlocks.of_ids(_MOONCAKE_BLOCK_TOKENS, ids[: prompt_tokens // _MOONCAKE_BLOCK_TOKENS])


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", name).lower().split())


def _one_of(known: Mapping[str, str], wanted: Sequence[str]) -> str:
    found = next((known[name] for name in wanted if name in known), None)
    if found is None:
        raise KeyError("timestamp" if wanted is _TIMES else wanted[0].replace(" ", "_"))
    return found


def _model_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip().isprintable():
        raise ValueError(f"{shown(value)} is not the name of a model")
    return value.strip()


def _tokens(value: Any) -> int:
    """A whole number, however it is written (``18.0`` is one)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shown(value)} is not a number of tokens")
    number = float(value)
    if not number.is_integer():  # neither are inf and nan
        raise ValueError(f"{shown(value)} is not a whole number of tokens")
    if number > _MOST_TOKENS:
        raise ValueError(f"{shown(value)} tokens are more than {_MOST_TOKENS}")
    return int(number)


def _parse_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{shown(value)} is not a time")
    return float(value)


def _time_parser(example: Any) -> Callable[[Any], float]:
    """What reads times like the example."""
    if isinstance(example, str) and re.match(r"\s*\d+:", example):
        return _parse_clock
    return _parse_date if isinstance(example, str) and re.match(r"\s*\d{4}-\d", example) else _parse_number


def read_trace(path: Path, unit: str | None = None) -> list[Arrival]:
    """Read a trace (CSV or JSON lines, plain or ``.gz``), by arrival time; its kind is known by its names.

    CSV: the artifact's columns, Azure's, BurstGPT's and VTC's, or other usual names for them. JSON lines: Mooncake's
    fields, with a ``model`` or without; its ``hash_ids`` become the ``content``. Times are clocks (``HH:MM:SS.mmm``),
    dates, or numbers. Numbers are seconds; milliseconds where their name says ``ms``, in lines with ``hash_ids``, and
    where they are so large, or so far apart, that they can be nothing else; ``unit`` (of ``TIME_UNITS``) overrules all
    that. Dates, and clocks that were not started for the trace (since 1970, say) count from the first request. Requests
    for no output are left out, and a warning says how many.

    Raises ``WorkloadError`` naming file and line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as file:
            trace = _read(path, file)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise WorkloadError(f"{path}: cannot be read ({error})") from error
    if trace.empty:
        _LOG.warning("%s: requests without a prompt or for no output are left out: %d", path, trace.empty)
    if not trace.arrivals:
        left_out = f" with a prompt and output tokens ({trace.empty} without are left out)" if trace.empty else ""
        raise WorkloadError(f"{path}: no request in it{left_out}")
    return trace.from_start(unit)


@dataclass(slots=True)
class _Trace:
    """What is in a file, times as they are written. ``empty``: requests for no output, left out."""

    fields: _Fields
    json: bool
    parse: Callable[[Any], float] | None = None
    arrivals: list[Arrival] = field(default_factory=list)
    empty: int = 0

    def add(self, values: Mapping[str, Any], line: int) -> None:
        """Raises ``ValueError`` or ``KeyError``."""
        self.parse = self.parse or _time_parser(values[self.fields.time])
        time = self.parse(values[self.fields.time])
        if self.fields.asks_for_nothing(values):
            self.empty += 1
        else:
            self.arrivals.append(self.fields.arrival(values, time, line))

    def from_start(self, unit: str | None) -> list[Arrival]:
        """Arrivals by time, in seconds from the workload's start."""
        ordered = sorted(self.arrivals, key=lambda arrival: arrival.time_s)
        factor = TIME_UNITS[self._unit(ordered, unit)]
        first_s = ordered[0].time_s * factor
        start_s = first_s if self.parse is _parse_date or first_s > _LONGEST_LEAD_S else 0.0
        return [replace(arrival, time_s=round(arrival.time_s * factor - start_s, 6)) for arrival in ordered]

    def _unit(self, ordered: Sequence[Arrival], told: str | None) -> str:
        if self.parse is not _parse_number:
            return "s"
        known = told or self.fields.unit
        first, last = ordered[0].time_s, ordered[-1].time_s
        since_1970 = next((unit for unit, least in _LEAST_SINCE_1970 if first >= least), None)
        if known or since_1970 or not self.json:
            return known or since_1970 or "s"
        whole = all(arrival.time_s.is_integer() for arrival in ordered)
        return "ms" if whole and last - first > _LONGEST_MEAN_GAP_S * (len(ordered) - 1) else "s"


def _read(path: Path, file: TextIO) -> _Trace:
    first = file.readline()
    lines = chain((first,), file)
    if ".jsonl" in path.suffixes or first.lstrip().startswith("{"):
        return _read_objects(path, lines)
    return _read_table(path, lines, max(",;\t", key=first.count))


def _read_table(path: Path, lines: Iterable[str], delimiter: str) -> _Trace:
    reader = csv.DictReader(lines, delimiter=delimiter)
    names = list(reader.fieldnames or ())
    try:
        trace = _Trace(_Fields.of(names), json=False)
    except KeyError:
        empty = "" if names else " (the file is empty)"
        raise WorkloadError(
            f"{path}:1: unknown columns {', '.join(names)!r}{empty}; known traces have: {_KNOWN_COLUMNS}"
        ) from None
    try:
        for values in reader:
            if None in values.values():
                raise ValueError("the row has fewer columns than the header")
            if any(values.pop(None, ())):
                raise ValueError("the row has more columns than the header")
            trace.add(values, reader.line_num)
    except _WRONG_LINE as error:
        raise _wrong_line(path, reader.reader.line_num, error) from error
    return trace


def _read_objects(path: Path, lines: Iterable[str]) -> _Trace:
    trace: _Trace | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError(f"expected a JSON object, got {line.strip()[:40]}")
            trace = trace or _Trace(_Fields.of(values), json=True)
            trace.add(values, number)
        except KeyError as error:
            raise WorkloadError(f"{path}:{number}: no {error} in it; known lines have: {_KNOWN_FIELDS}") from error
        except _WRONG_LINE as error:
            raise _wrong_line(path, number, error) from error
    if trace is None:
        raise WorkloadError(f"{path}: no request in it")
    return trace


def _wrong_line(path: Path, number: int, error: Exception) -> WorkloadError:
    return WorkloadError(f"{path}:{number}: {str(error)[:_TOLD_CHARS]}")


# --- command line ----------------------------------------------------------------------------------------------------


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write synthetic workloads: Poisson arrivals per model, ShareGPT lengths. One file per combination "
        "of --num-models and --arrival-rate, named synth-<models>-<rate>-<inlen scale>-<outlen scale>.csv.",
    )
    parser.add_argument("--num-models", type=int, nargs="+", required=True, metavar="N")
    parser.add_argument("--arrival-rate", type=float, nargs="+", required=True, metavar="R", help="req/s per model")
    parser.add_argument("--inlen-scale", type=float, default=1.0, metavar="X", help="multiplies prompt lengths")
    parser.add_argument("--outlen-scale", type=float, default=1.0, metavar="X", help="multiplies output lengths")
    parser.add_argument("--duration", type=float, default=120.0, metavar="S", help="seconds (default 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("workloads"), metavar="DIR", help="default ./workloads")
    parser.add_argument("--max-context", type=int, default=32768, metavar="TOKENS", help="input + output are cut to it")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=f"counts the tokens of {SHAREGPT_VARIABLE}")
    return parser


def _specs(options: argparse.Namespace) -> Iterator[SyntheticSpec]:
    for rate_per_s in options.arrival_rate:
        for models in options.num_models:
            yield SyntheticSpec(
                models=models,
                rate_per_s=rate_per_s,
                duration_s=options.duration,
                input_scale=options.inlen_scale,
                output_scale=options.outlen_scale,
                seed=options.seed,
                max_context_tokens=options.max_context,
            )


def _write_all(options: argparse.Namespace) -> None:
    specs = list(_specs(options))
    if options.tokenizer and not os.environ.get(SHAREGPT_VARIABLE):
        raise WorkloadError(f"--tokenizer counts the tokens of the ShareGPT file: set {SHAREGPT_VARIABLE} too")
    count = tokenizer_counter(options.tokenizer) if options.tokenizer else estimate_tokens
    lengths = default_lengths(os.environ, count)
    sys.stdout.write(f"lengths: {lengths.description}\n")
    for spec in specs:
        arrivals = synthesize(spec, lengths)
        write_csv(arrivals, options.out / spec.file_name)
        sys.stdout.write(f"{options.out / spec.file_name}: {len(arrivals)} requests\n")


def main(arguments: Sequence[str] | None = None, program: str = "workload.py") -> int:
    """Run the command line; 2 after a complaint about values or files."""
    try:
        _write_all(_parser(program).parse_args(arguments))
    except (WorkloadError, OSError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
