"""Workloads: seeded arrivals x lengths in, requests out; CSV files and published traces too.

Runs as a script from anywhere, with numpy alone::

    python3 aegaeon/workload.py --num-models 8 10 12 --arrival-rate 0.1 0.5 --duration 120

Does not know: who replays a workload, what a model is beyond its name.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

MIN_OUTPUT_TOKENS = 16
SHAREGPT_VARIABLE = "AEGAEON_SHAREGPT_PATH"
CSV_COLUMNS = ("Request Time", "Model Name", "Input Length", "Output Length")
QUANTILE_TABLE = Path(__file__).parent / "data" / "sharegpt_lengths.csv"


class WorkloadError(ValueError):
    """A file or a value that no workload can be made from; the message names it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload: when (seconds from its start), for which model, and how long."""

    time_s: float
    model: str
    input_tokens: int
    output_tokens: int

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
    return -(-len(text.encode()) // 4)


def tokenizer_counter(directory: Path) -> TokenCounter:
    """Count with the ``tokenizer.json`` of a model directory (needs the ``tokenizers`` package)."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise WorkloadError(f"{directory}: no tokenizer.json; --tokenizer needs a model directory that has one")
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def sharegpt_lengths(path: Path, count: TokenCounter = estimate_tokens) -> ObservedLengths:
    """Lengths of a ShareGPT file: the human turns so far are the prompt, the next gpt turn is the output."""
    try:
        conversations = json.loads(path.read_bytes())
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}; {SHAREGPT_VARIABLE} must name a ShareGPT JSON file") from error
    except ValueError as error:
        raise WorkloadError(f"{path}: not a JSON file ({error})") from error
    try:
        pairs = [pair for talk in conversations for pair in _turn_lengths(talk["conversations"], count)]
    except (KeyError, TypeError, AttributeError) as error:
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
    """Give each request to one of ``models``, all equally likely: for traces that name only one model."""
    chosen = np.random.default_rng(seed).integers(0, len(models), len(arrivals))
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


def _parse_clock(text: str) -> float:
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not a time of the form HH:MM:SS.mmm")
    return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])


def _parse_date(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class _TraceColumns:
    """How one kind of trace names its columns. Without a model column, all requests are for ``model_name``.

    ``calendar``: times are dates, so the workload starts at the first request.
    """

    time: str
    inputs: str
    outputs: str
    model: str | None
    seconds: Callable[[str], float]
    model_name: str = ""
    calendar: bool = False

    def matches(self, header: Sequence[str]) -> bool:
        return {self.time, self.inputs, self.outputs, *((self.model,) if self.model else ())} <= set(header)

    def parse(self, row: Mapping[str, str]) -> Arrival:
        if None in row.values():
            raise ValueError("the row has fewer columns than the header")
        model = row[self.model] if self.model else self.model_name
        return Arrival(self.seconds(row[self.time]), model, int(row[self.inputs]), int(row[self.outputs]))


_TRACE_KINDS = (
    _TraceColumns("Request Time", "Input Length", "Output Length", "Model Name", _parse_clock),
    _TraceColumns("TIMESTAMP", "ContextTokens", "GeneratedTokens", None, _parse_date, "azure", calendar=True),
    _TraceColumns("req_time", "prompt_len", "output_len", "adapter_dir", float),
)


def read_trace(path: Path) -> list[Arrival]:
    """Read a trace (``.csv`` or ``.jsonl``, plain or ``.gz``), by arrival time; its kind is known by its columns.

    CSV: the artifact's columns, Azure's (TIMESTAMP, ContextTokens, GeneratedTokens: times from the first request on,
    one model) and VTC's LMSYS columns. JSON lines: Mooncake's requests (one model). Raises ``WorkloadError`` naming
    file and line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    lines = ".jsonl" in path.suffixes
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None if lines else "") as file:
            arrivals = _read_lines(path, file) if lines else _read_rows(path, file)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise WorkloadError(f"{path}: cannot be read ({error})") from error
    if not arrivals:
        raise WorkloadError(f"{path}: no request in it")
    return arrivals


def _read_rows(path: Path, file: TextIO) -> list[Arrival]:
    reader = csv.DictReader(file)
    columns = _columns_of(path, reader.fieldnames or ())
    arrivals = []
    try:
        for row in reader:
            arrivals.append(columns.parse(row))  # noqa: PERF401 - the line number is wanted at the failing row
    except (ValueError, csv.Error) as error:
        raise WorkloadError(f"{path}:{reader.line_num}: {error}") from error
    arrivals.sort(key=lambda arrival: arrival.time_s)
    start_s = arrivals[0].time_s if columns.calendar and arrivals else 0.0
    return [replace(arrival, time_s=round(arrival.time_s - start_s, 6)) for arrival in arrivals]


def _columns_of(path: Path, header: Sequence[str]) -> _TraceColumns:
    for columns in _TRACE_KINDS:
        if columns.matches(header):
            return columns
    known = "; ".join(f"{kind.time}, {kind.inputs}, {kind.outputs}" for kind in _TRACE_KINDS)
    raise WorkloadError(f"{path}:1: unknown columns {', '.join(header)!r}; known traces have: {known}")


def _read_lines(path: Path, file: TextIO) -> list[Arrival]:
    arrivals: list[Arrival] = []
    for number, line in enumerate(file, 1):
        try:
            arrivals.append(_parse_line(json.loads(line)))
        except KeyError as error:
            known = "timestamp (ms), input_length, output_length"
            raise WorkloadError(f"{path}:{number}: no {error} in it; known lines have: {known}") from error
        except (TypeError, ValueError) as error:
            raise WorkloadError(f"{path}:{number}: {error}") from error
    return sorted(arrivals, key=lambda arrival: arrival.time_s)


def _parse_line(line: Mapping[str, Any]) -> Arrival:
    return Arrival(line["timestamp"] / 1000, "mooncake", int(line["input_length"]), int(line["output_length"]))


# --- command line ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workload.py",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 2 after a complaint about values or files."""
    try:
        _write_all(_parser().parse_args(arguments))
    except (WorkloadError, OSError) as error:
        sys.stderr.write(f"workload.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
