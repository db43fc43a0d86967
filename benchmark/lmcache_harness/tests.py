"""LMCache's usual tests, at the size of a small model on a CPU: contexts of 512, 1,024 and 1,536 tokens in place of
8,192, 16,384 and 24,576, answers of 32 in place of 200.

    python -m benchmark.lmcache_harness benchmark/lmcache_harness/tests.py -f local_cpu -m MODEL -o out/

Two engines, side by side: pools of one instance on one core. Keeping KV is what LMCache adds to its engine; here it is
``--prefix-cache``. KV is kept in host memory, so there is no test of a GPU's, and none of remote servers or CacheGen,
which this project does not have; ``benchmark/kv_reuse.py`` has a disk (``--kv-disk``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmark.lmcache_harness.config import EngineConfig, HarnessCase, Row, Usecase, WorkloadConfig
from benchmark.lmcache_harness.experiment import run_case

CONTEXTS = (512, 1024, 1536)
QUERY_TOKENS, OUTPUT_TOKENS, GAP_S = 16, 32, 8.0
KEEPS, FORGETS = ("--prefix-cache", "slo"), ("--prefix-cache", "off")


def _engine(model: Path, port: int, *arguments: str) -> EngineConfig:
    usual = ("--instances", "1", "--threads-per-instance", "1", "--kv-cache", "1GiB")
    return EngineConfig(model, (*usual, *arguments), port)


def _dummy(requests: int, contexts: Sequence[int] = CONTEXTS) -> list[WorkloadConfig]:
    return [WorkloadConfig(requests, GAP_S, context, QUERY_TOKENS, OUTPUT_TOKENS) for context in contexts]


def test_lmcache_local_cpu(model: Path, ports: tuple[int, int]) -> list[Row]:
    """One context, ten questions: an engine that keeps KV in host memory, and one that does not."""
    engines = [_engine(model, ports[0], *KEEPS), _engine(model, ports[1], *FORGETS)]
    return run_case(HarnessCase(_dummy(10), engines))


def test_chunk_prefill(model: Path, ports: tuple[int, int]) -> list[Row]:
    """The same with prompts that are processed in small pieces, between other requests' steps."""
    chunked = ("--prefill-chunk-tokens", "128")
    engines = [_engine(model, ports[0], *KEEPS, *chunked), _engine(model, ports[1], *FORGETS, *chunked)]
    return run_case(HarnessCase(_dummy(10), engines))


def test_cache_compatibility(model: Path, ports: tuple[int, int]) -> list[Row]:
    """Two engines that keep KV by different policies: where all fits, they do alike."""
    engines = [_engine(model, ports[0], *KEEPS), _engine(model, ports[1], "--prefix-cache", "lfu")]
    return run_case(HarnessCase(_dummy(5), engines))


def test_vary_length_workload(model: Path, ports: tuple[int, int]) -> list[Row]:
    """Contexts of 512, 1,024 and 1,024 tokens, each the beginning of the next: what is found is a part."""
    workload = WorkloadConfig(3, GAP_S, CONTEXTS[0], QUERY_TOKENS, OUTPUT_TOKENS, Usecase.VARY)
    return run_case(HarnessCase([workload], [_engine(model, ports[0], *KEEPS)]))


def test_multi_turn(model: Path, ports: tuple[int, int]) -> list[Row]:
    """A conversation of ten turns, whose answers are found again, too."""
    workload = WorkloadConfig(10, 0.0, 16, QUERY_TOKENS, 64, Usecase.MULTI)
    engines = [_engine(model, ports[0], *KEEPS), _engine(model, ports[1], *FORGETS)]
    return run_case(HarnessCase([workload], engines))
