"""Which model ran where and when, put together from the timelines of requests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from aegaeon.core.timeline import Phase, PhaseSpan

_RUNNING = (Phase.PREFILL, Phase.DECODE)


class Occupancy(NamedTuple):
    """One stretch in which an instance ran one model, in seconds of the server's clock."""

    model: str
    start_s: float
    end_s: float


def occupancies(timelines: Iterable[tuple[str, Sequence[PhaseSpan]]]) -> dict[str, list[Occupancy]]:
    """Per instance, stretches of one model; neighbours with the same model are one.

    ``timelines``: each request's model and spans.
    """
    raw: defaultdict[str, list[Occupancy]] = defaultdict(list)
    for model, spans in timelines:
        for span in spans:
            if span.instance_id and span.phase in _RUNNING:
                raw[span.instance_id].append(Occupancy(model, span.start_s, span.end_s))
    return {instance: _merged(raw[instance]) for instance in sorted(raw)}


def _merged(stretches: list[Occupancy]) -> list[Occupancy]:
    merged: list[Occupancy] = []
    for stretch in sorted(stretches, key=lambda stretch: stretch.start_s):
        last = merged[-1] if merged else None
        if last and last.model == stretch.model and stretch.start_s <= last.end_s:
            merged[-1] = last._replace(end_s=max(last.end_s, stretch.end_s))
        else:
            merged.append(stretch)
    return merged


def switches(occupancy: Mapping[str, Sequence[Occupancy]]) -> Counter[str]:
    """How often any instance changed over to each model; the first model of an instance counts too."""
    count: Counter[str] = Counter()
    for stretches in occupancy.values():
        count.update(stretch.model for stretch in stretches[:1])
        count.update(later.model for earlier, later in pairwise(stretches) if later.model != earlier.model)
    return count
