"""Writes an outcome as vLLM's artifact does, so that its own plots can read it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from sim.study.paged.experiment import PAGED, Experiment, Served


def folder(experiment: Experiment) -> Path:
    """Where the artifact looks for an experiment, in its folder of results."""
    system = (
        experiment.system if experiment.system != PAGED else "cacheflow-swap" * experiment.always_swap or "cacheflow"
    )
    return Path(
        experiment.dataset,
        f"{experiment.model}-tp{experiment.studied.tp}",
        experiment.sampling.name,
        system,
        f"block{experiment.block_tokens}",
        f"req-rate-{experiment.rate}",
        f"seed{experiment.seed}",
        f"duration-{experiment.duration_s:g}",
    )


def write_artifact(outcome: Served, results: Path) -> Path:
    """Write ``sequences.pkl``, ``stats.pkl`` and ``log.txt``; returns their folder."""
    place = results / folder(outcome.experiment)
    place.mkdir(parents=True, exist_ok=True)
    (place / "sequences.pkl").write_bytes(pickle.dumps(_sequences(outcome)))
    (place / "stats.pkl").write_bytes(pickle.dumps(_stats(outcome)))
    (place / "log.txt").write_text(f"simulated: {outcome.experiment}\n", encoding="utf-8")
    return place


def _sequences(outcome: Served) -> list[dict[str, Any]]:
    """One entry for each sequence; times count from the beginning."""
    return [
        {
            "group_id": number,
            "seq_id": number * group.sequences + sequence,
            "arrival_time": group.arrival_s,
            "finish_time": group.finish_s,
            "prompt_len": group.prompt_tokens,
            "output_len": group.output_tokens,
        }
        for number, group in enumerate(outcome.groups)
        if group.finish_s is not None
        for sequence in range(group.sequences)
    ]


def _stats(outcome: Served) -> dict[str, Any]:
    """A list for each number, with an entry for each iteration."""
    columns, experiment = outcome.log.columns(), outcome.experiment
    block, blocks = experiment.block_tokens, experiment.blocks
    host_blocks = experiment.studied.host_blocks(block)
    lists = {
        "timestamps": columns["time_s"],
        "input_lens": columns["input_tokens"],
        "swap_out_lens": columns["swapped_out_blocks"] * block,
        "swap_in_lens": columns["swapped_in_blocks"] * block,
        "num_preemption": columns["preempted"],
        "num_waiting": columns["waiting"],
        "num_running": columns["running"],
        "num_swapped": columns["swapped"],
        "gpu_cache_usage": columns["used_blocks"] / blocks,
        "cpu_cache_usage": columns["used_host_blocks"] / host_blocks,
        "num_logical_blocks": columns["logical_blocks"],
        "num_logical_tokens": columns["logical_tokens"],
        "num_physical_blocks": columns["used_blocks"],
        "num_physical_tokens": columns["tokens"],
        "num_reserved_tokens": columns["reserved_tokens"] * (experiment.system != PAGED),
    }
    if experiment.system != PAGED:
        lists["num_internal_tokens"] = columns["useless_tokens"]
    return {
        "num_gpu_blocks": blocks,
        "num_cpu_blocks": host_blocks,
        **{name: column.tolist() for name, column in lists.items()},
    }
