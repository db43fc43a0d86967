"""The command line of ``benchmark_e2e.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aegaeon.workload import TIME_UNITS
from benchmark.command.errors import BenchmarkUsageError
from benchmark.command.main import amount, count
from benchmark.e2e.plan import DEFAULT_MODELS
from benchmark.e2e.small_models import BENCH_MODELS_DIR

_POOL_ONLY = ("config", "models", "instances", "cpu_num_slabs")


def parse_options(arguments: Sequence[str] | None, program: str = "benchmark_e2e.py") -> argparse.Namespace:
    """The options, checked. Raises ``BenchmarkUsageError``, or exits where argparse does."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Replay a workload over HTTP and write plots/json/run-<workload>-ttft<TTFT>-tpot<TPOT>.json. "
        "Targets: AEGAEON_TTFT_SLO, AEGAEON_TPOT_SLO (seconds). Exit code 1 if a request failed.",
    )
    _add_workload(parser.add_argument_group("workload"))
    _add_server(parser.add_argument_group("server"))
    parser.add_argument("--out", type=Path, default=Path("plots/json"), metavar="DIR", help="default ./plots/json")
    options = parser.parse_args(arguments)
    if options.base_url and (own := [name for name in _POOL_ONLY if getattr(options, name)]):
        flag = own[0].replace("_", "-")
        raise BenchmarkUsageError(f"--{flag} is for a pool that is started here; --base-url names a running one")
    return options


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-models", "--num-model", type=count, metavar="N", help=f"default {DEFAULT_MODELS}; a trace's own"
    )
    group.add_argument("--arrival-rate", type=amount, default=0.1, metavar="R", help="req/s per model (default 0.1)")
    group.add_argument("--inlen-scale", type=amount, default=1.0, metavar="X", help="multiplies prompt lengths")
    group.add_argument("--outlen-scale", type=amount, default=1.0, metavar="X", help="multiplies output lengths")
    group.add_argument("--duration", type=amount, metavar="S", help="replay what arrives within (120; all of a trace)")
    group.add_argument("--seed", type=int, help="of a synthetic workload (default 0)")
    group.add_argument(
        "--workloads", type=Path, default=Path("workloads"), metavar="DIR", help="folder of synth-*.csv (./workloads)"
    )
    group.add_argument("--trace", type=Path, metavar="FILE", help="replay this trace (.csv, .jsonl, .gz) instead")
    group.add_argument("--trace-unit", choices=list(TIME_UNITS), help="of the trace's times (what the trace tells)")
    group.add_argument("--time-scale", type=amount, default=1.0, metavar="X", help="multiplies times; 0.5 halves them")
    group.add_argument("--max-input-tokens", type=count, metavar="N", help="longer prompts are cut")
    group.add_argument("--max-output-tokens", type=count, metavar="N", help="longer outputs are cut")


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="of a running server; without it a pool is started")
    group.add_argument("--config", type=Path, metavar="FILE", help="pool.yaml of the pool to start")
    group.add_argument("--models", nargs="+", metavar="NAME=DIR", help="models of the pool to start (default: made)")
    group.add_argument(
        "--models-dir", type=Path, default=BENCH_MODELS_DIR, metavar="DIR", help="where made models are kept"
    )
    group.add_argument(
        "--policy", metavar="NAME", help="of the pool to start, as in aegaeon serve; what a running server says it runs"
    )
    group.add_argument("--measured-on", metavar="DEVICE", help="what the server runs on, for the record (what is here)")
    group.add_argument("--instances", metavar="ROLE=N,...", help="of the pool to start, as in aegaeon serve")
    group.add_argument("--nnodes", type=count, default=1, metavar="N", help="Ray nodes; more than 1 need a cluster")
    group.add_argument("--cpu-num-slabs", type=count, metavar="N", help="slabs of the KV cache")
    group.add_argument("--timeout", type=amount, default=600.0, metavar="S", help="a reply silent for S fails (600)")
