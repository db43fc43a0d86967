"""Who is suspected when instances die: a request that ran each time, then its model.

An instance may be killed from outside, or by what it computes. Whoever was in the step at two deaths without having got
anywhere in between is suspected, and runs alone; where that is another death, it was the request. Deaths of different
requests, each alone, or while the model was bound, speak against the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_SUSPECTED_DEATHS = 2
# A request that comes so many tokens further than at a death was not its cause: what kills, kills again at that place.
_CLEARED_TOKENS = 8
# So many deaths in a row that no request explains condemn the model.
_MODEL_DEATHS = 3


@dataclass(slots=True)
class RequestSuspicion:
    """The deaths that a request took part in since it last got anywhere.

    ``tokens`` are those of its output so far, ``kv_tokens`` those of which there is KV: a long prompt has no output for
    long. KV is made again after a death, so it counts from the furthest that it had come at any.
    """

    deaths: int = 0
    _at_tokens: int = 0
    _at_kv_tokens: int = 0

    @property
    def suspected(self) -> bool:
        """Whether it is to run alone."""
        return self.deaths >= _SUSPECTED_DEATHS

    @property
    def proven(self) -> bool:
        """Whether it has been in one more death after it was suspected, that is, alone."""
        return self.deaths > _SUSPECTED_DEATHS

    def note_progress(self, tokens: int, kv_tokens: int = 0) -> None:
        """It has come so far."""
        if max(tokens - self._at_tokens, kv_tokens - self._at_kv_tokens) >= _CLEARED_TOKENS:
            self.deaths = 0

    def note_death(self, tokens: int, kv_tokens: int = 0) -> None:
        """It was in the step when an instance died, and has come so far."""
        self.note_progress(tokens, kv_tokens)
        self.deaths += 1
        self._at_tokens, self._at_kv_tokens = tokens, max(self._at_kv_tokens, kv_tokens)


@dataclass(slots=True)
class ModelSuspicion:
    """The deaths that speak against a model since it last did anything."""

    _binding_deaths: int = 0
    _dead_alone: set[str] = field(default_factory=set)

    @property
    def proven(self) -> bool:
        return self._binding_deaths >= _MODEL_DEATHS or len(self._dead_alone) >= _MODEL_DEATHS

    def note_bound(self) -> None:
        """A model's weights were bound."""
        self._binding_deaths = 0

    def note_output(self) -> None:
        """It gave somebody a token."""
        self._binding_deaths = 0
        self._dead_alone.clear()

    def note_death_in_binding(self) -> None:
        """An instance died while the model was bound, before any request took a step."""
        self._binding_deaths += 1

    def note_death_alone(self, request_id: str) -> None:
        """An instance died while this request ran alone."""
        self._dead_alone.add(request_id)
