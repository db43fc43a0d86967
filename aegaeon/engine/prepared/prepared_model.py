"""A model that can be served, or why it cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from aegaeon.core.config import ModelConfig
from aegaeon.core.model import ModelSpec
from aegaeon.engine.checkpoint.generation_defaults import known_ids
from aegaeon.engine.prepared.engine_facts import EngineFacts


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that can be served: ``path`` is its directory or the image made of it; ``fingerprint`` is of the
    configuration that ``facts`` are of, ``files`` of all the directory's files, taken before they were looked at,
    ``weights`` of those in ``path`` that are read."""

    config: ModelConfig
    path: Path
    facts: EngineFacts
    spec: ModelSpec
    note: str
    fingerprint: str
    files: str
    weights: str

    @property
    def identity(self) -> str:
        """A digest of all that the KV of a sequence depends on but for its tokens."""
        return repr((self.fingerprint, self.weights, self.facts.dtype, self.facts.kv_shape))

    def with_tokenizer(self, eos_token_id: int | None, notes: Iterable[str]) -> PreparedModel:
        """The same, with what its tokenizer adds: a token that ends a text, and ``notes`` for the operator."""
        known, wrong = known_ids((*self.facts.eos_token_ids, eos_token_id), self.facts.vocab_size)
        note = "; ".join(filter(None, (self.note, *wrong, *notes)))
        return replace(self, facts=replace(self.facts, eos_token_ids=known), note=note)


@dataclass(frozen=True, slots=True)
class RefusedModel:
    """A model that cannot, and why."""

    config: ModelConfig
    reason: str


Findings = tuple[list[PreparedModel], list[RefusedModel]]
