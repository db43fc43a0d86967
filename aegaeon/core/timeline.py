"""Where a request's time went: spans on the node's monotonic clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a span was spent on."""

    CONTROL = "control"  # commands and tokens on their way between processes
    SWITCH = "switch"  # the request's turn waits for its model's weights
    KV = "kv"  # waits for its KV to move, or for free blocks
    PREFILL = "prefill"  # its prompt is processed
    DECODE = "decode"  # steps of a turn it is in


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """One stretch of a request's life, ``[start_s, end_s)``."""

    phase: Phase
    start_s: float
    end_s: float
    instance_id: str = ""

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class LatencyParts:
    """The six parts of a request's latency (Figure 14), in seconds; together they are its whole life."""

    prefill_wait_s: float
    prefill_s: float
    decode_wait_s: float
    decode_s: float
    control_s: float
    block_s: float

    @classmethod
    def of(cls, arrival_s: float, first_token_s: float, finish_s: float, spans: Iterable[PhaseSpan]) -> LatencyParts:
        """Split ``[arrival_s, finish_s]`` by spans; what no span covers is waiting, before or after the first token.

        A switch is waiting too: it counts to the wait of the phase it happened in, as in the artifact's records. What
        a span has outside of the request's life (a turn's last step goes on for the others) does not count.
        """
        spent = dict.fromkeys(Phase, 0.0)
        before = after = 0.0
        for span in spans:
            start_s, end_s = max(span.start_s, arrival_s), min(span.end_s, finish_s)
            if start_s >= end_s:
                continue
            spent[span.phase] += end_s - start_s
            if span.phase is not Phase.SWITCH:
                early = max(0.0, min(end_s, first_token_s) - start_s)
                before += early
                after += end_s - start_s - early
        return cls(
            prefill_wait_s=max(0.0, first_token_s - arrival_s - before),
            prefill_s=spent[Phase.PREFILL],
            decode_wait_s=max(0.0, finish_s - first_token_s - after),
            decode_s=spent[Phase.DECODE],
            control_s=spent[Phase.CONTROL],
            block_s=spent[Phase.KV],
        )
