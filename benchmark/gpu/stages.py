"""What the GPU suite measures, one function for each stage: a rig's models in, records out.

Rates are bytes per second of 1e9; times are medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from aegaeon.device.common.protocol import Stream
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.device_runner import DeviceRunner
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.runner import Runner
from aegaeon.runtime.instance.device_kv import copy_in_batches
from aegaeon.runtime.instance.host_entry import host_tensors
from benchmark.gpu.rig import Rig

Record = dict[str, Any]
REPEATS = 5
DECODE_ROWS = (1, 8, 32, 128)
DECODE_CONTEXT = 1024
PREFILL_TOKENS = (512, 2048, 8192)
SWITCHES = 100  # of the first model; a tenth of the others, whose weights are large
_COPY_BYTES = 1 << 30
_KV_CONTEXTS, _KV_CONTEXT_TOKENS = 8, 2048


class TokensDifferError(Exception):
    """A switch has changed what a model says."""


def limits(rig: Rig) -> Iterator[Record]:
    """What the machine can copy at best: the limits that the rest is compared with."""
    size = min(_COPY_BYTES, rig.host.numel(), rig.memory.numel() // 2)
    device, other = rig.memory[:size], rig.memory[size : 2 * size]
    pageable = torch.zeros(size, dtype=torch.uint8)
    pairs = {
        "host to device, pinned": (device, rig.host[:size], Stream.COPY_IN),
        "device to host, pinned": (rig.host[:size], device, Stream.COPY_OUT),
        "host to device, pageable": (device, pageable, Stream.COPY_IN),
        "device to device": (other, device, Stream.COPY_IN),
    }
    for what, (destination, source, stream) in pairs.items():

        def copy(destination: torch.Tensor = destination, source: torch.Tensor = source, at: Stream = stream) -> None:
            rig.device.synchronize(rig.device.copy(destination, source, at))

        copy()
        seconds = _median_s(rig, copy)
        yield {"what": what, "bytes": size, "seconds": seconds, "gb_per_s": size / seconds / 1e9}


def switch(rig: Rig) -> Iterator[Record]:
    """Bringing a model in: from disk, from the host cache, prefetched, resident; and taking it out.

    ``of_limit``: the bandwidth reached, as a share of that of a pinned copy measured in the same run.
    """
    limit_gb_per_s = _pinned_gb_per_s(rig, Stream.COPY_IN)
    yield {"what": "limit: pinned copy", "gb_per_s": limit_gb_per_s}
    for model, size in rig.weight_bytes.items():
        for what, seconds in _switch_phases(rig, model).items():
            record = {"model": model, "what": what, "bytes": size, "seconds": seconds}
            if what.startswith("from"):
                gb_per_s = size / seconds / 1e9
                record |= {"gb_per_s": gb_per_s, "of_limit": gb_per_s / limit_gb_per_s}
            yield record
        rig.evict(model)


def _switch_phases(rig: Rig, model: str) -> dict[str, float]:
    """Medians in seconds. The model's skeleton is built before; the model stays on the device."""
    _bring_in(rig, model)
    rig.evict(model)
    rig.forget(model)
    phases: dict[str, list[float]] = {"from disk": [rig.timed_s(lambda: _bring_in(rig, model))]}
    for _ in range(REPEATS):
        phases.setdefault("evict", []).append(rig.timed_s(lambda: rig.evict(model)))
        phases.setdefault("from host cache", []).append(rig.timed_s(lambda: _bring_in(rig, model)))
        phases.setdefault("resident", []).append(rig.timed_s(lambda: rig.bind(model)))
        rig.evict(model)
        rig.take(model)
        rig.device.synchronize(rig.device.record(Stream.COPY_IN))
        phases.setdefault("prefetched", []).append(rig.timed_s(lambda: rig.bind(model)))
    return {what: median(seconds) for what, seconds in phases.items()}


def decode(rig: Rig) -> Iterator[Record]:
    """Decode steps, eager and as graphs, before and after switches.

    ``of_limit``: how many times as long as reading the weights once, at the rate at which a copy within the device
    reads and writes.
    """
    bytes_per_s = _memory_bytes_per_s(rig)
    yield {"what": "limit: memory, from a copy within the device", "gb_per_s": bytes_per_s / 1e9}
    for index, (model, size) in enumerate(rig.weight_bytes.items()):
        rig.take(model)
        runner = rig.bind(model)
        for rows in DECODE_ROWS:
            yield from _decode_records(rig, runner, model, size / bytes_per_s, rows)
        switches = SWITCHES if index == 0 else SWITCHES // 10
        for _ in range(switches):
            rig.evict(model)
            _bring_in(rig, model)
        yield _decode_record(rig, runner, model, size / bytes_per_s, DECODE_ROWS[1], f"after {switches} switches")
        rig.evict(model)


def prefill(rig: Rig) -> Iterator[Record]:
    """Prompts in one chunk."""
    for model in rig.weight_bytes:
        rig.take(model)
        runner = rig.bind(model)
        for tokens in PREFILL_TOKENS:
            piece = SequenceSlice([7] * tokens, 0, rig.blocks(model, 1, tokens)[0])
            runner.step([piece], rig.arena)
            seconds = _median_s(rig, lambda r=runner, p=piece: r.step([p], rig.arena))  # type: ignore[misc]
            yield {"model": model, "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
        backends = {str(needs): name for needs, name in rig.engine.attention.chosen.items()}
        yield {"model": model, "what": "attention", "backends": backends}
        rig.evict(model)


def kv(rig: Rig) -> Iterator[Record]:
    """Blocks out to the slab cache and in again: of 8 contexts of 2048 tokens, or what the host's memory holds."""
    limits = {"out": _pinned_gb_per_s(rig, Stream.COPY_OUT), "in": _pinned_gb_per_s(rig, Stream.COPY_IN)}
    for model, shape in rig.shapes.items():
        size = shape.block_bytes
        tables = rig.blocks(model, _KV_CONTEXTS, _KV_CONTEXT_TOKENS)
        blocks = [block for table in tables for block in table][: rig.host.numel() // size]
        inside = [rig.memory[block : block + size] for block in blocks]
        outside = [rig.host[index * size : (index + 1) * size] for index in range(len(blocks))]
        ways = {
            "out": (list(zip(outside, inside, strict=True)), Stream.COPY_OUT),
            "in": (list(zip(inside, outside, strict=True)), Stream.COPY_IN),
        }
        for what, (pairs, stream) in ways.items():

            def move(pairs: list[tuple[torch.Tensor, torch.Tensor]] = pairs, at: Stream = stream) -> None:
                rig.device.synchronize(copy_in_batches(rig.device, pairs, at))

            move()
            seconds = _median_s(rig, move)
            moved = size * len(blocks)
            yield {
                "model": model,
                "what": what,
                "blocks": len(blocks),
                "block_bytes": size,
                "seconds": seconds,
                "gb_per_s": moved / seconds / 1e9,
                "of_limit": moved / seconds / 1e9 / limits[what],
            }


def overlap(rig: Rig) -> Iterator[Record]:
    """How much slower a model decodes while another one is copied in."""
    running, *_, coming = rig.weight_bytes
    rig.take(running)
    runner, tables = rig.bind(running), rig.blocks(running, 8, DECODE_CONTEXT + 64)
    _warm_up(rig, runner, tables)
    alone = median(_step_s(rig, runner, tables) for _ in range(20))
    during: list[float] = []
    for _ in range(REPEATS):
        rig.take(coming)
        arriving = rig.device.record(Stream.COPY_IN)
        while not rig.device.query(arriving):
            during.append(_step_s(rig, runner, tables))
        rig.bind(coming)
        rig.evict(coming)
    slowdown = median(during) / alone - 1.0 if during else None
    yield {"what": "decode alone", "model": running, "seconds": alone}
    yield {"what": f"while {coming} comes in", "seconds": median(during) if during else None, "slower": slowdown}
    rig.evict(running)


def tokens(rig: Rig, folders: dict[str, Path]) -> Iterator[Record]:
    """Greedy tokens of the smallest model: on this device, across switches, and on the CPU.

    Raises ``TokensDifferError`` where switches change them. That the CPU rounds in another order is no fault.
    """
    model = min(rig.weight_bytes, key=lambda name: rig.weight_bytes[name])
    rig.take(model)
    runner = rig.bind(model)
    prompt = [(7 * i * i + 3 * i) % 500 + 2 for i in range(200)]
    first = _greedy(rig, runner, model, prompt, switch_every=None)
    again = _greedy(rig, runner, model, prompt, switch_every=4)
    yield {"model": model, "what": "equal across switches", "equal": first == again}
    rig.evict(model)
    expected, margins = _greedy_on_host(rig, model, folders[model], prompt, len(first))
    same = next((index for index, pair in enumerate(zip(first, expected, strict=True)) if pair[0] != pair[1]), None)
    yield {"model": model, "what": "equal with the CPU", "equal": same is None, "first_difference": same}
    if same is not None:
        yield {"model": model, "what": "the CPU's two best logits there", "margin": margins[same]}
    if first != again:
        raise TokensDifferError(
            f"{model} says something else when it leaves the device and comes back: {first}, {again}"
        )


def _greedy_on_host(rig: Rig, model: str, folder: Path, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The same continuation by the CPU's engine, from the same bytes; and how far ahead each best logit was.

    Random weights give logits near each other: a difference where the margin is within bfloat16's rounding is no fault.
    """
    margins = []
    runner = Runner(Model(folder, dtype="bfloat16"), rig.shapes[model])
    shape, ids = rig.shapes[model], list(prompt)
    blocks = shape.blocks_for(len(prompt) + count)
    arena = KvArena(torch.zeros(blocks * shape.block_bytes, dtype=torch.uint8), blocks * shape.block_bytes)
    table = [index * shape.block_bytes for index in range(blocks)]
    with rig.entry(model) as entry:
        runner.model.bind(host_tensors(entry))
        for index in range(count):
            piece = SequenceSlice(ids if index == 0 else ids[-1:], 0 if index == 0 else len(ids) - 1, table)
            logits = runner.step([piece], arena)[0]
            best, second = logits.float().topk(2).values.tolist()
            margins.append(best - second)
            ids.append(int(logits.argmax()))
        runner.model.unbind()
    return ids[len(prompt) :], margins


def _greedy(
    rig: Rig, runner: DeviceRunner, model: str, prompt: list[int], switch_every: int | None, count: int = 32
) -> list[int]:
    """The prompt's continuation; the model goes and comes back after every so many tokens."""
    table, ids = rig.blocks(model, 1, len(prompt) + count)[0], list(prompt)
    logits = runner.step([SequenceSlice(ids, 0, table)], rig.arena)
    for index in range(count):
        ids.append(int(logits[0].argmax()))
        if switch_every and index % switch_every == 0:
            rig.evict(model)
            rig.take(model)
            rig.bind(model)
        while runner.prepare_one():
            pass
        logits = runner.step([SequenceSlice(ids[-1:], len(ids) - 1, table)], rig.arena)
    return ids[len(prompt) :]


def _bring_in(rig: Rig, model: str) -> None:
    rig.take(model)
    rig.bind(model)


def _decode_records(rig: Rig, runner: DeviceRunner, model: str, limit_s: float, rows: int) -> Iterator[Record]:
    """Eager first, then with whatever graph is kept."""
    try:
        rig.blocks(model, rows, DECODE_CONTEXT + 64)
    except ValueError as error:
        yield {"model": model, "rows": rows, "what": f"not measured: {error}"}
        return
    yield _decode_record(rig, runner, model, limit_s, rows, "eager")
    before_bytes = rig.engine.shelf.used_bytes
    while runner.prepare_one():
        pass
    graph_bytes = rig.engine.shelf.used_bytes - before_bytes
    yield _decode_record(rig, runner, model, limit_s, rows, "as served") | {"graph_bytes": graph_bytes}


def _decode_record(rig: Rig, runner: DeviceRunner, model: str, limit_s: float, rows: int, what: str) -> Record:
    tables, replays = rig.blocks(model, rows, DECODE_CONTEXT + 64), runner.replays
    seconds = _median_s(rig, lambda: rig.decode(runner, tables, DECODE_CONTEXT))
    record = {"model": model, "rows": rows, "context": DECODE_CONTEXT, "what": what, "seconds": seconds}
    return record | {"of_limit": seconds / limit_s, "graph": runner.replays > replays}


def _pinned_gb_per_s(rig: Rig, stream: Stream) -> float:
    """One large copy between pinned host memory and the device."""
    size = min(_COPY_BYTES, rig.host.numel(), rig.memory.numel())
    pair = (rig.memory[:size], rig.host[:size])
    destination, source = pair if stream is Stream.COPY_IN else pair[::-1]
    seconds = _median_s(rig, lambda: rig.device.synchronize(rig.device.copy(destination, source, stream)))
    return size / seconds / 1e9


def _memory_bytes_per_s(rig: Rig) -> float:
    """What a copy within the device reads and writes."""
    size = min(_COPY_BYTES, rig.memory.numel() // 2)
    other, one = rig.memory[:size], rig.memory[size : 2 * size]
    seconds = _median_s(rig, lambda: rig.device.synchronize(rig.device.copy(other, one, Stream.COPY_IN)))
    return 2 * size / seconds


def _warm_up(rig: Rig, runner: DeviceRunner, tables: list[list[int]]) -> None:
    for _ in range(REPEATS):
        rig.decode(runner, tables, DECODE_CONTEXT)
    while runner.prepare_one():
        pass


def _step_s(rig: Rig, runner: DeviceRunner, tables: list[list[int]]) -> float:
    """A step from its submission to its token, as an instance waits for it; copies go on."""
    start_s = time.perf_counter()
    rig.decode(runner, tables, DECODE_CONTEXT).argmax(-1).tolist()
    return time.perf_counter() - start_s


def _median_s(rig: Rig, work: Callable[[], object], repeats: int = REPEATS) -> float:
    work()
    return median(rig.timed_s(work) for _ in range(repeats))
