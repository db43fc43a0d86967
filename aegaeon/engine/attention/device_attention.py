"""Attention of a step on a device: the backends that can do it, and which one a layer gets.

A backend says what it cannot do (``refuses``); the first one of a list that can is taken, and the log says once which
one that is, and why those before it are not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aegaeon.engine.attention.attention import AttentionCall, Reach
from aegaeon.engine.attention.kv_arena import HeadRows
from aegaeon.engine.attention.lanes import Lanes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerNeeds:
    """What a layer asks of attention, as far as it decides who can do it."""

    dtype: torch.dtype
    query_heads: int
    kv_heads: int
    key_size: int
    value_size: int
    block_tokens: int
    unit_elements: int
    reach: Reach
    capped: bool
    sinks: bool

    @classmethod
    def of(cls, call: AttentionCall, keys: HeadRows, values: HeadRows) -> LayerNeeds:
        """The needs of one call."""
        return cls(
            keys.dtype,
            call.query.shape[1],
            keys.heads,
            keys.size,
            values.size,
            keys.block_tokens,
            keys.unit,
            call.reach,
            call.softcap is not None,
            call.sinks is not None,
        )

    def __str__(self) -> str:
        """The needs in words: what is unusual about them comes last."""
        heads = f"{self.query_heads} query and {self.kv_heads} key heads of {self.key_size}"
        sizes = "" if self.key_size == self.value_size else f" (values of {self.value_size})"
        extras = [
            f"window of {self.reach.window_tokens}" if self.reach.window_tokens else "",
            f"chunks of {self.reach.chunk_tokens}" if self.reach.chunk_tokens else "",
            "soft cap" * self.capped,
            "sinks" * self.sinks,
        ]
        return ", ".join([f"{heads}{sizes} in {str(self.dtype).removeprefix('torch.')}", *filter(None, extras)])


class AttentionBackend(Protocol):
    """One way to attend on a device."""

    @property
    def name(self) -> str:
        """What logs and records call it."""
        ...

    @property
    def reads_padding(self) -> bool:
        """Whether it reads slots that no token was written to (and so needs them to be finite numbers), and takes time
        for the padding of block tables."""
        ...

    def refuses(self, needs: LayerNeeds) -> str | None:
        """Why it cannot; None if it can."""
        ...

    def prepare(self, lanes: Lanes) -> None:
        """Look at the values of lanes that it has attended before, outside of any graph."""
        ...

    def attend(self, call: AttentionCall, query: Tensor, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        """``query`` ``[T, heads, key_size]`` to ``[T, heads, value_size]``; the step's keys and values are written."""
        ...


class NoAttentionError(RuntimeError):
    """No backend can do what a layer asks."""


class DeviceAttention:
    """Backends in the order in which they are tried."""

    def __init__(self, backends: Sequence[AttentionBackend]) -> None:
        self._backends = tuple(backends)
        self._chosen: dict[LayerNeeds, AttentionBackend] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the backends, in the order in which they are tried."""
        return tuple(backend.name for backend in self._backends)

    @property
    def chosen(self) -> dict[LayerNeeds, str]:
        """What has been chosen so far, for logs and records."""
        return {needs: backend.name for needs, backend in self._chosen.items()}

    @property
    def reads_padding(self) -> bool:
        """Whether any backend in use (or, before the first step, any at all) does."""
        backends = self._chosen.values() or self._backends
        return any(backend.reads_padding for backend in backends)

    def prepare(self, lanes: Lanes) -> None:
        """Comes before every step on lanes whose tensors are filled anew, whether it is a graph's or not."""
        for backend in dict.fromkeys(self._chosen.values()):
            backend.prepare(lanes)

    def attend(self, call: AttentionCall, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        """Output ``[T, heads, value_size]``. Raises ``NoAttentionError``."""
        backend = self.choose(LayerNeeds.of(call, keys, values))
        query = call.query[0].transpose(0, 1).to(keys.dtype)
        return backend.attend(call, query, keys, values, lanes)

    def choose(self, needs: LayerNeeds) -> AttentionBackend:
        """The backend for a layer. Raises ``NoAttentionError`` with everybody's reasons."""
        if needs not in self._chosen:
            self._chosen[needs] = self._first_that_can(needs)
        return self._chosen[needs]

    def _first_that_can(self, needs: LayerNeeds) -> AttentionBackend:
        reasons: list[str] = []
        for backend in self._backends:
            reason = backend.refuses(needs)
            if reason is None:
                logger.info("attention of %s: %s%s", needs, backend.name, "".join(f"; not {r}" for r in reasons))
                return backend
            reasons.append(f"{backend.name}: {reason}")
        raise NoAttentionError(f"no attention backend takes {needs}: {'; '.join(reasons) or 'there is none'}")
