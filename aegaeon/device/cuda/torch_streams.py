"""What is asked of torch about CUDA: its context, its stream, its graphs, its own memory.

``torch.cuda`` is used in this file and in no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.device.cuda.driver import NoCudaError

_MEASUREMENTS = 3


def use(ordinal: int) -> torch.device:
    """Make a GPU torch's current one. Raises ``NoCudaError`` where torch cannot use it."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_device(ordinal)
    except (RuntimeError, AssertionError) as error:  # no driver, or a torch built without CUDA
        raise NoCudaError(f"torch cannot use CUDA: {str(error).splitlines()[0]}") from error
    return torch.device("cuda", ordinal)


def current_stream(ordinal: int) -> int:
    """The driver's handle of the stream that torch gives its work to."""
    return int(torch.cuda.current_stream(ordinal).cuda_stream)


def peak_bytes(ordinal: int) -> int:
    """The most that torch's own tensors took at once."""
    return int(torch.cuda.max_memory_allocated(ordinal))


def synchronize() -> None:
    """Wait for all work of the current GPU."""
    torch.cuda.synchronize()


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Host memory that copies to a GPU need not stage."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Stopwatch:
    """Time between two points of the current stream."""

    def __init__(self) -> None:
        self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Note the first point."""
        self._begin.record()

    def stop_s(self) -> float:
        """Note the second, wait for it, and tell the seconds between."""
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A ``Graph`` of torch's."""

    graph: torch.cuda.CUDAGraph
    output: Tensor
    size_bytes: int

    def replay(self) -> None:
        self.graph.replay()


class TorchGraphs:
    """A ``GraphCapture`` for GPU ``ordinal``."""

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], Tensor]) -> CapturedGraph:
        torch.cuda.synchronize()
        before_bytes = torch.cuda.memory_reserved(self._ordinal)
        graph = torch.cuda.CUDAGraph()
        # Other threads may call the driver meanwhile: the loader's, which copy the next model's weights.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        taken_bytes = torch.cuda.memory_reserved(self._ordinal) - before_bytes
        return CapturedGraph(graph, output, max(0, taken_bytes))

    def measure_s(self, work: Callable[[], object]) -> float:
        return min(_timed_s(work) for _ in range(_MEASUREMENTS))


def _timed_s(work: Callable[[], object]) -> float:
    watch = Stopwatch()
    watch.start()
    work()
    return watch.stop_s()
