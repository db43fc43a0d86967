"""A workload with its models: who arrives when, and what each synthetic model really is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileBook, ProfileEntry
from aegaeon.workload import Arrival, LengthSource, NamedBlocks, SyntheticSpec, read_trace, synthesize
from sim.systems.errors import InputError
from sim.workloads.named_blocks import require_names
from sim.world.model_facts import SimModel

SIMULATOR_MIX = ("qwen2.5-7b",) * 6 + ("yi-1.5-9b",) * 2 + ("llama-2-13b",) * 2
MAX_CONTEXT_TOKENS = 32768
WORKLOAD_FOLDERS = (Path("sim/simdata"), Path("workloads"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """``models`` by name; ``arrivals``: requests by time with the tokens that each will produce.

    ``contents``: what requests begin with, by id, where that is known.
    """

    models: Mapping[str, SimModel]
    arrivals: tuple[tuple[Request, int], ...]
    tp: int
    origin: str
    contents: Mapping[str, NamedBlocks] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        return tuple(model.spec for model in self.models.values())


def find_workload(spec: SyntheticSpec) -> Path | None:
    """The file of a synthetic workload, where there is one."""
    return next((path for folder in WORKLOAD_FOLDERS if (path := folder / spec.file_name).is_file()), None)


def read_or_make(spec: SyntheticSpec, lengths: LengthSource, look: bool = True) -> tuple[list[Arrival], str]:
    """The arrivals of a synthetic workload and where they come from: its file (if ``look``), else made by its seed."""
    path = find_workload(spec) if look else None
    if path is not None:
        return read_trace(path), str(path)
    return synthesize(spec, lengths), f"generated, seed {spec.seed}"


def make_scenario(
    arrivals: Sequence[Arrival],
    origin: str,
    book: ProfileBook,
    device: str,
    mix: Sequence[str] = SIMULATOR_MIX,
    slo: Slo | None = None,
    max_context_tokens: int = MAX_CONTEXT_TOKENS,
) -> Scenario:
    """Models in order of first appearance take the kinds of ``mix`` in turn; a trace that names real models keeps them.

    Raises ``InputError`` (no request at all; one longer than the context limit; kinds that need different device
    groups) or ``LatencyError`` (a model or device without a profile).
    """
    slo = slo or Slo()
    if not arrivals:
        raise InputError(
            f"{origin}: there is no request in it; a longer --duration or a higher --arrival-rate has some"
        )
    _require_fit(arrivals, origin, max_context_tokens)
    names = list(dict.fromkeys(arrival.model for arrival in arrivals))
    entries = {kind: book.find(kind, device) for kind in dict.fromkeys(mix)}
    models = {
        name: _sim_model(name, entries[mix[index % len(mix)]], max_context_tokens, slo)
        for index, name in enumerate(names)
    }
    groups = {entry.tp for entry in entries.values()}
    if len(groups) > 1:
        raise InputError(f"--mix has models for groups of {sorted(groups)} devices: simulate each on its own")
    requests = tuple(
        (_request(str(index), arrival, slo), arrival.output_tokens) for index, arrival in enumerate(arrivals)
    )
    return Scenario(models, requests, groups.pop(), origin, _contents(arrivals, models, origin))


def _contents(arrivals: Sequence[Arrival], models: Mapping[str, SimModel], origin: str) -> Mapping[str, NamedBlocks]:
    contents = {str(index): arrival.content for index, arrival in enumerate(arrivals) if arrival.content is not None}
    try:
        require_names(contents.values())
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from error
    for request_id, content in contents.items():
        block_tokens = models[arrivals[int(request_id)].model].block_tokens
        if content.block_tokens % block_tokens:
            raise InputError(
                f"{origin}: names of {content.block_tokens} tokens are no whole KV blocks of {block_tokens}"
            )
    return contents


def _request(request_id: str, arrival: Arrival, slo: Slo) -> Request:
    new_tokens = arrival.output_tokens
    return Request(request_id, arrival.model, arrival.time_s, arrival.input_tokens, new_tokens, slo, new_tokens)


def _sim_model(name: str, entry: ProfileEntry, max_context_tokens: int, slo: Slo) -> SimModel:
    spec = ModelSpec(name, entry.weight_bytes, entry.kv_shape, max_context_tokens, slo)
    return SimModel(spec, entry.profile, entry.model)


def _require_fit(arrivals: Sequence[Arrival], origin: str, limit_tokens: int) -> None:
    worst = max(arrivals, key=lambda arrival: arrival.input_tokens + arrival.output_tokens)
    tokens = worst.input_tokens + worst.output_tokens
    if tokens > limit_tokens:
        where = f"{origin}:{worst.line}" if worst.line else origin
        raise InputError(
            f"{where}: {worst.input_tokens} prompt and {worst.output_tokens} new tokens exceed the context limit of "
            f"{limit_tokens}; shorten the request or raise --max-context"
        )
