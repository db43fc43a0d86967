"""The engine against Transformers' ``generate()`` on one model, and what a switch costs, phase by phase (CPU).

    python3 benchmark/engine.py                      a bfloat16 Llama of 220 million random weights, one thread
    python3 benchmark/engine.py --threads 2 --rounds 5 --new-tokens 128

Both run the same prompts in turn, several rounds; the table has medians. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import transformers
from rich.console import Console
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.sampler import Sampler
from aegaeon.engine.sampling.sampling_state import SamplingState
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packing import WeightPacker
from aegaeon.engine.step.runner import Runner
from benchmark.command.main import count, run_measuring
from benchmark.command.result_file import RESULTS, write_result

TARGETS = {1: 1.0, 8: 1.2, 32: 1.5}
REBIND_TARGET_MS = 5.0
PACK_BYTES = 2 << 30
PACKING_STEPS = 256  # enough to pack all weights of the model
CHUNK_TOKENS = 512
ALIGNMENT_BYTES = 64

CONFIG = transformers.LlamaConfig(
    hidden_size=1024,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=2304,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    dtype="bfloat16",
)


@dataclass(frozen=True, slots=True)
class Timing:
    """One generation: the whole of it, and the part before the first token."""

    total_s: float
    first_token_s: float

    def decode_tokens_per_s(self, batch: int, new_tokens: int) -> float:
        return batch * (new_tokens - 1) / (self.total_s - self.first_token_s)

    def tokens_per_s(self, batch: int, new_tokens: int) -> float:
        return batch * new_tokens / self.total_s


@dataclass(frozen=True, slots=True)
class Rate:
    """Medians at a batch size, in output tokens per second."""

    batch: int
    generate_decode: float
    engine_decode: float
    generate_whole: float
    engine_whole: float

    @property
    def decode_ratio(self) -> float:
        return self.engine_decode / self.generate_decode

    @property
    def whole_ratio(self) -> float:
        return self.engine_whole / self.generate_whole


class HuggingFace:
    """``generate()``, greedy."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._model = model

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        first_token_s = self._seconds(prompts, 1)
        return Timing(self._seconds(prompts, new_tokens), first_token_s)

    def _seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        ids = torch.tensor(prompts)
        settings = transformers.GenerationConfig(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        start_s = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return time.perf_counter() - start_s


class Engine:
    """The engine as an instance drives it: chunked prefills, a sampler, KV blocks all over an arena."""

    def __init__(self, model: Model, shape: KvShape, slab_bytes: int = 16 << 20) -> None:
        self._runner = Runner(model, shape, WeightPacker(PACK_BYTES))
        self._shape = shape
        self._slab_bytes = slab_bytes
        self._sampler = Sampler()

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        arena, tables = self._place(len(prompts), len(prompts[0]) + new_tokens)
        states = [SamplingState(SamplingParams(temperature=0.0, max_new_tokens=new_tokens)) for _ in prompts]
        start_s = time.perf_counter()
        together = max(1, CHUNK_TOKENS // len(prompts[0]))
        last: list[int] = []
        for first in range(0, len(prompts), together):
            group = slice(first, first + together)
            last += self._prefill(prompts[group], tables[group], states[group], arena)
        first_token_s = time.perf_counter() - start_s
        for step in range(new_tokens - 1):
            position = len(prompts[0]) + step
            slices = [SequenceSlice([token], position, table) for token, table in zip(last, tables, strict=True)]
            last = _chosen(self._sampler.sample(self._runner.step(slices, arena), states))
        return Timing(time.perf_counter() - start_s, first_token_s)

    def _prefill(
        self,
        prompts: Sequence[Sequence[int]],
        tables: Sequence[Sequence[int]],
        states: Sequence[SamplingState],
        arena: KvArena,
    ) -> list[int]:
        """The first tokens of prompts that fit into a step together, or of one that takes several."""
        for start in range(0, len(prompts[0]), CHUNK_TOKENS):
            pieces = [prompt[start : start + CHUNK_TOKENS] for prompt in prompts]
            slices = [SequenceSlice(piece, start, table) for piece, table in zip(pieces, tables, strict=True)]
            logits = self._runner.step(slices, arena)
        return _chosen(self._sampler.sample(logits, states))

    def _place(self, sequences: int, tokens: int) -> tuple[KvArena, list[list[int]]]:
        """An arena, and block tables whose neighbours are not neighbours in memory."""
        blocks = self._shape.blocks_for(tokens)
        per_slab = self._slab_bytes // self._shape.block_bytes
        slabs = -(-blocks * sequences // per_slab)
        offsets = [s * self._slab_bytes + i * self._shape.block_bytes for i in range(per_slab) for s in range(slabs)]
        arena = KvArena(torch.zeros(slabs * self._slab_bytes, dtype=torch.uint8), self._slab_bytes)
        return arena, [offsets[i : sequences * blocks : sequences] for i in range(sequences)]


def _chosen(tokens: Sequence[int | None]) -> list[int]:
    """Every one is: these models have no logits that are not finite."""
    assert None not in tokens
    return [token for token in tokens if token is not None]


def compare(generate: HuggingFace, engine: Engine, options: argparse.Namespace, console: Console) -> list[Rate]:
    """Rates at each batch size; rounds interleave both, after one that warms up (and packs weights)."""
    prompts = torch.randint(0, CONFIG.vocab_size, (max(options.batch), options.prompt_tokens)).tolist()
    timings: dict[int, tuple[list[Timing], list[Timing]]] = {batch: ([], []) for batch in options.batch}
    engine.run(prompts[:1], PACKING_STEPS)
    generate.run(prompts[:1], 4)
    for done in range(options.rounds):
        for batch, (of_generate, of_engine) in timings.items():
            with console.status(f"round {done + 1} of {options.rounds}, batch {batch}"):
                of_generate.append(generate.run(prompts[:batch], options.new_tokens))
                of_engine.append(engine.run(prompts[:batch], options.new_tokens))
    return [_rate(batch, *pair, options.new_tokens) for batch, pair in timings.items()]


def _rate(batch: int, of_generate: list[Timing], of_engine: list[Timing], new_tokens: int) -> Rate:
    def medians(timings: list[Timing]) -> tuple[float, float]:
        decode = median(timing.decode_tokens_per_s(batch, new_tokens) for timing in timings)
        return decode, median(timing.tokens_per_s(batch, new_tokens) for timing in timings)

    generate_decode, generate_whole = medians(of_generate)
    engine_decode, engine_whole = medians(of_engine)
    return Rate(batch, generate_decode, engine_decode, generate_whole, engine_whole)


def switch_phases(path: Path, weights: dict[str, torch.Tensor], rounds: int = 9) -> dict[str, float]:
    """Medians in milliseconds of each phase of a switch to a model whose weights are in shared host memory."""
    shape = inspect_model(path).kv_shape
    arena = KvArena(torch.zeros(shape.block_bytes, dtype=torch.uint8), shape.block_bytes)
    fd, layout, size_bytes = _shared(weights)
    watch = StepStopwatch()
    token = [SequenceSlice([1], 0, [0])]
    for _ in range(rounds):
        with watch.phase("build the skeleton (once per model)"):
            model = Model(path)
        runner = Runner(model, shape)
        with watch.phase("map the weights"):
            mapping = mmap.mmap(fd, size_bytes)
        with watch.phase("make views of them"):
            views = _views(mapping, layout)
        with watch.phase("bind, first time"):
            model.bind(views)
        with watch.phase("first step, first time (page faults)"):
            runner.step(token, arena)
        with watch.phase("unbind"):
            model.unbind()
        with watch.phase("bind again"):
            model.bind(views)
        with watch.phase("first step after it"):
            runner.step(token, arena)
        with watch.phase("a later step"):
            runner.step(token, arena)
        model.unbind()
        views.clear()
        with watch.phase("unmap"):
            mapping.close()
    os.close(fd)
    return watch.medians_ms


class StepStopwatch:
    """Times of named phases, over and over."""

    def __init__(self) -> None:
        self._times_ms: dict[str, list[float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self._times_ms.setdefault(name, []).append(1e3 * (time.perf_counter() - start_s))

    @property
    def medians_ms(self) -> dict[str, float]:
        return {name: median(times_ms) for name, times_ms in self._times_ms.items()}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in shared memory."""

    offset_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def _shared(weights: dict[str, torch.Tensor]) -> tuple[int, dict[str, _Place], int]:
    """Copy weights to anonymous shared memory: its descriptor, what lies where, its size."""
    layout, offset = {}, 0
    for name, weight in weights.items():
        layout[name] = _Place(offset, weight.dtype, tuple(weight.shape))
        offset += -(-weight.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    fd = os.memfd_create("aegaeon-benchmark")
    os.truncate(fd, offset)
    with mmap.mmap(fd, offset) as mapping:
        views = _views(mapping, layout)
        for name, weight in weights.items():
            views[name].copy_(weight)
        views.clear()
    return fd, layout, offset


def _views(mapping: mmap.mmap, layout: dict[str, _Place]) -> dict[str, torch.Tensor]:
    base = torch.frombuffer(mapping, dtype=torch.uint8)
    sizes = {name: torch.Size(place.shape).numel() * place.dtype.itemsize for name, place in layout.items()}
    return {
        name: base[place.offset_bytes : place.offset_bytes + sizes[name]].view(place.dtype).view(place.shape)
        for name, place in layout.items()
    }


def rate_table(rates: Sequence[Rate], options: argparse.Namespace) -> Table:
    shape = f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new ones"
    title = f"output tokens/s: {shape}, {options.threads} threads"
    table = Table("batch", title=title)
    for head in (
        "HF decode",
        "engine: decode",
        "ratio",
        "HF whole",
        "engine: whole",
        "ratio",
        "target",
    ):
        table.add_column(head, justify="right")
    for rate in rates:
        target = TARGETS.get(rate.batch)
        table.add_row(
            str(rate.batch),
            f"{rate.generate_decode:.1f}",
            f"{rate.engine_decode:.1f}",
            f"{rate.decode_ratio:.2f}x",
            f"{rate.generate_whole:.1f}",
            f"{rate.engine_whole:.1f}",
            f"{rate.whole_ratio:.2f}x",
            f"{target}x" if target is not None else "",
        )
    return table


def phase_table(phases: dict[str, float], weight_bytes: int) -> Table:
    table = Table("phase of a switch", title=f"{weight_bytes / 1e6:.0f} MB of weights in shared memory")
    table.add_column("ms", justify="right")
    for phase, milliseconds in phases.items():
        table.add_row(phase, f"{milliseconds:.2f}")
    return table


def machine() -> dict[str, str | int | None]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=count, default=1, help="compute threads of both")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--batch", type=count, nargs="+", default=list(TARGETS))
    parser.add_argument("--prompt-tokens", type=count, default=128)
    parser.add_argument("--new-tokens", type=count, default=64, help="at least 2")
    parser.add_argument("--output", type=Path, default=RESULTS / "engine.json")
    options = parser.parse_args(arguments)
    if options.new_tokens < 2:
        parser.error("argument --new-tokens: must be at least 2: the first one is no decode step")
    return options


def _run(options: argparse.Namespace, console: Console) -> int:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="aegaeon-engine-") as folder:
        path = Path(folder)
        CONFIG.save_pretrained(path)
        (path / "model.safetensors").write_bytes(b"")  # weights are bound from memory
        reference = transformers.AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).eval()
        weights = dict(reference.state_dict())
        model = Model(path)
        model.bind(weights)
        weight_bytes = inspect_model(path).weight_bytes
        phases = switch_phases(path, weights)
        rates = compare(HuggingFace(reference), Engine(model, inspect_model(path).kv_shape), options, console)
    console.print(rate_table(rates, options))
    console.print(phase_table(phases, weight_bytes))
    record = {
        "machine": machine(),
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "weight_bytes": weight_bytes,
        "rates": [
            asdict(rate) | {"decode_ratio": rate.decode_ratio, "whole_ratio": rate.whole_ratio} for rate in rates
        ],
        "switch_ms": phases,
    }
    write_result(options.output, "engine", record)
    console.print(f"written to {options.output}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 2 where it could not be done, 130 after Ctrl-C."""
    options, console = parse_options(arguments), make_console()
    return run_measuring("engine", lambda _spinners: _run(options, console))


if __name__ == "__main__":
    sys.exit(main())
