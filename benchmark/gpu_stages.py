"""What the GPU suite measures, one function for each stage: a rig's models in, records out.

Rates are bytes per second of 1e9; times are medians.

Does not know: processes, files, tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from aegaeon.device.protocol import Stream
from aegaeon.engine.batch import SequenceSlice
from aegaeon.engine.device_runner import DeviceRunner
from aegaeon.engine.kv_arena import KvArena
from aegaeon.engine.model import Model
from aegaeon.engine.runner import Runner
from aegaeon.runtime.weight_store import host_tensors
from benchmark.gpu_rig import Rig

Record = dict[str, Any]
REPEATS = 5
DECODE_ROWS = (1, 8, 32, 128)
DECODE_CONTEXT = 1024
PREFILL_TOKENS = (512, 2048, 8192)
SWITCHES = 100
_COPY_BYTES = 1 << 30


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
    """Bringing a model in: from disk, from the host cache, prefetched, resident; and taking it out."""
    for model, size in rig.weight_bytes.items():
        rig.take(model)
        rig.bind(model)
        rig.evict(model)
        rig.forget(model)
        cold_s = rig.timed_s(lambda model=model: _bring_in(rig, model))  # type: ignore[misc]
        cached, evict, resident = [], [], []
        for _ in range(REPEATS):
            evict.append(rig.timed_s(lambda model=model: rig.evict(model)))  # type: ignore[misc]
            cached.append(rig.timed_s(lambda model=model: _bring_in(rig, model)))  # type: ignore[misc]
            resident.append(rig.timed_s(lambda model=model: rig.bind(model)))  # type: ignore[misc]
        phases = {"from disk": cold_s, "from host cache": median(cached), "resident": median(resident)}
        phases["evict"] = median(evict)
        for what, seconds in phases.items():
            yield {"model": model, "what": what, "bytes": size, "seconds": seconds, "gb_per_s": size / seconds / 1e9}
        rig.evict(model)


def decode(rig: Rig) -> Iterator[Record]:
    """Decode steps, eager and as graphs, before and after switches; the copy within the device is the yardstick."""
    for model, size in rig.weight_bytes.items():
        rig.take(model)
        runner = rig.bind(model)
        for rows in DECODE_ROWS:
            tables = rig.blocks(model, rows, DECODE_CONTEXT + 64)
            yield from _decode_records(rig, runner, model, size, rows, tables)
        for _ in range(SWITCHES):
            rig.evict(model)
            rig.take(model)
            rig.bind(model)
        tables = rig.blocks(model, DECODE_ROWS[1], DECODE_CONTEXT + 64)
        replays = runner.replays
        seconds = _median_s(rig, lambda r=runner, t=tables: rig.decode(r, t, DECODE_CONTEXT))  # type: ignore[misc]
        yield {
            "model": model,
            "rows": DECODE_ROWS[1],
            "what": f"after {SWITCHES} switches",
            "seconds": seconds,
            "graph": runner.replays > replays,
        }
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
    """Blocks out to the slab cache and in again, as many as 8 contexts of 2048 tokens have."""
    for model, shape in rig.shapes.items():
        blocks = [block for table in rig.blocks(model, 8, 2048) for block in table]
        size = shape.block_bytes
        inside = [rig.memory[block : block + size] for block in blocks]
        outside = [rig.host[index * size : (index + 1) * size] for index in range(len(blocks))]
        ways = {
            "out": (list(zip(outside, inside, strict=True)), Stream.COPY_OUT),
            "in": (list(zip(inside, outside, strict=True)), Stream.COPY_IN),
        }
        for what, (pairs, stream) in ways.items():

            def move(pairs: list[tuple[torch.Tensor, torch.Tensor]] = pairs, at: Stream = stream) -> None:
                rig.device.synchronize(rig.device.copy_many(pairs, at))

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
            }


def overlap(rig: Rig) -> Iterator[Record]:
    """How much slower a model decodes while another one is copied in."""
    running, coming = next(iter(rig.weight_bytes)), list(rig.weight_bytes)[-1]
    if running == coming:
        yield {"what": f"not measured: {running} is the only model, and it takes two"}
        return
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
    """Greedy tokens of the smallest model: on this device, across switches, and on the CPU in float32."""
    model = min(rig.weight_bytes, key=lambda name: rig.weight_bytes[name])
    rig.take(model)
    runner = rig.bind(model)
    prompt = [(7 * i * i + 3 * i) % 500 + 2 for i in range(200)]
    first = _greedy(rig, runner, model, prompt, switch_every=None)
    again = _greedy(rig, runner, model, prompt, switch_every=4)
    yield {"model": model, "what": "equal across switches", "equal": first == again}
    rig.evict(model)
    expected = _greedy_on_host(rig, model, folders[model], prompt, len(first))
    same = next((index for index, pair in enumerate(zip(first, expected, strict=True)) if pair[0] != pair[1]), None)
    yield {"model": model, "what": "equal with the CPU", "equal": same is None, "first_difference": same}


def _greedy_on_host(rig: Rig, model: str, folder: Path, prompt: list[int], count: int) -> list[int]:
    """The same continuation by the CPU's engine, from the same bytes."""
    runner = Runner(Model(folder, dtype="bfloat16"), rig.shapes[model])
    shape, ids = rig.shapes[model], list(prompt)
    blocks = shape.blocks_for(len(prompt) + count)
    arena = KvArena(torch.zeros(blocks * shape.block_bytes, dtype=torch.uint8), blocks * shape.block_bytes)
    table = [index * shape.block_bytes for index in range(blocks)]
    with rig.entry(model) as entry:
        runner.model.bind(host_tensors(entry))
        for index in range(count):
            piece = SequenceSlice(ids if index == 0 else ids[-1:], 0 if index == 0 else len(ids) - 1, table)
            ids.append(int(runner.step([piece], arena)[0].argmax()))
        runner.model.unbind()
    return ids[len(prompt) :]


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


def _decode_records(
    rig: Rig, runner: DeviceRunner, model: str, size: int, rows: int, tables: list[list[int]]
) -> Iterator[Record]:
    """Eager first, then with whatever graph is kept. ``limit_gb_per_s`` is what reading the weights once comes to."""
    eager_s = _median_s(rig, lambda: rig.decode(runner, tables, DECODE_CONTEXT))
    before_bytes = rig.engine.shelf.used_bytes
    while runner.prepare_one():
        pass
    replays = runner.replays
    graph_s = _median_s(rig, lambda: rig.decode(runner, tables, DECODE_CONTEXT))
    record = {"model": model, "rows": rows, "context": DECODE_CONTEXT}
    yield record | {"what": "eager", "seconds": eager_s, "weights_gb_per_s": size / eager_s / 1e9}
    yield record | {
        "what": "as served",
        "seconds": graph_s,
        "weights_gb_per_s": size / graph_s / 1e9,
        "graph": runner.replays > replays,
        "graph_bytes": rig.engine.shelf.used_bytes - before_bytes,
    }


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
