"""The command of vLLM's artifact, simulated:

    python3 -m sim.study.paged --system astra --model opt-13b --dataset sharegpt --sampling n1 --rates 1.0,1.5,2.0 \\
        --duration 600 [--results DIR]

``astra`` is vLLM. ``--results`` writes the artifact's folders, which its plots read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aegaeon.run_header import result_header
from sim.study.command import make_console, run_command
from sim.study.paged.artifact_files import write_artifact
from sim.study.paged.experiment import SYSTEMS, Experiment, Served
from sim.study.paged.lengths import DATASETS
from sim.study.paged.models import BLOCK_TOKENS, MEMORY_UTIL, MODELS
from sim.study.paged.sampling import NAMES, Sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 after a complaint about options or files, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run_command("sim.study.paged", lambda: _run(options, make_console()))


def _run(options: argparse.Namespace, console: Console) -> int:
    table = _table(f"{options.system}, {options.model}, {options.dataset}, {options.sampling}")
    rows = []
    for experiment in [_experiment(options, rate) for rate in options.rates]:
        outcome = experiment.run()
        rows.append(_row(outcome))
        table.add_row(*_cells(rows[-1]))
        if options.results is not None:
            console.print(f"{write_artifact(outcome, options.results)}", soft_wrap=True)
    console.print(table)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {**result_header("paged"), "options": _plain(options), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        console.print(f"{options.out}", soft_wrap=True)
    return 0


def _experiment(options: argparse.Namespace, rate: float) -> Experiment:
    return Experiment(
        system=options.system,
        model=options.model,
        dataset=options.dataset,
        rate=rate,
        duration_s=options.duration,
        sampling=Sampling.parse(options.sampling),
        seed=options.seed,
        block_tokens=options.block_size,
        always_swap=options.always_swap,
        memory_util=options.memory_util,
        timeout_s=options.timeout,
        lengths=options.lengths,
    )


def _row(outcome: Served) -> dict[str, Any]:
    columns, experiment = outcome.log.columns(), outcome.experiment
    return {
        "rate": experiment.rate,
        "requests": len(outcome.groups),
        "finished": len(outcome.finished),
        "normalized_latency_s": outcome.normalized_latency_s(),
        "running": float(columns["running"].mean()),
        "token_share": float(columns["tokens"].mean()) / (experiment.blocks * experiment.block_tokens),
        "used_share": float(columns["used_blocks"].mean()) / experiment.blocks,
        "preempted": int(columns["preempted"].sum()),
    }


def _table(title: str) -> Table:
    table = Table(title=f"{title}, simulated", title_justify="left")
    for heading in (
        "req/s",
        "requests",
        "ended",
        "s per token",
        "batched",
        "tokens in pool",
        "pool in use",
        "preempted",
    ):
        table.add_column(heading, justify="right")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['rate']:g}",
        f"{row['requests']:,}",
        f"{row['finished']:,}",
        f"{row['normalized_latency_s']:.4f}",
        f"{row['running']:.1f}",
        f"{row['token_share']:.1%}",
        f"{row['used_share']:.1%}",
        f"{row['preempted']:,}",
    ]


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sim.study.paged", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--system", choices=SYSTEMS, required=True)
    made.add_argument("--model", choices=[*MODELS], required=True)
    made.add_argument("--dataset", choices=[*DATASETS], required=True)
    made.add_argument("--sampling", choices=NAMES, default="n1")
    made.add_argument("--rates", type=_rates, required=True, metavar="R,R")
    made.add_argument("--duration", type=float, required=True, metavar="S", help="in which requests arrive")
    made.add_argument("--block-size", type=int, default=BLOCK_TOKENS, metavar="N", help="tokens, 1 to 256")
    made.add_argument("--seed", type=_seed, default=0)
    made.add_argument("--timeout", type=float, default=float("inf"), metavar="S", help="stop then; default: never")
    made.add_argument("--do-memory-analysis", action="store_true", help="always done here")
    made.add_argument("--always-swap", action="store_true", help="never compute preempted requests again")
    made.add_argument("--memory-util", type=float, default=MEMORY_UTIL, metavar="X")
    made.add_argument(
        "--lengths", type=Path, metavar="FILE", help="real lengths, CSV: num_prefill_tokens, num_decode_tokens"
    )
    made.add_argument("--results", type=Path, metavar="DIR", help="write the artifact's folders there")
    made.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    return made


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rates, such as 1.0,1.5") from None
    return rates


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {seed}")
    return seed


if __name__ == "__main__":
    sys.exit(main())
