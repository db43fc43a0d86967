"""A search by beams as an instance holds it: one request, of which several rows are in every step.

Its blocks are one table, in which rows have *places*. The whole blocks of the prompt come first, and all rows read
them; the others are each row's own, or of several rows that were one when they were filled::

    table:  | prompt | prompt | 2 | 3 | 4 | 5 | ...
    row 0:    prompt   prompt   2   4               its tokens after the prompt's whole blocks
    row 1:    prompt   prompt   2   5               block 2 was full when the two parted, block 4 was copied to 5

``token_ids`` are the prompt, and ``kv_tokens`` count its KV: all of it until there are beams, of its whole blocks from
then on. No place is written to by two rows, and rows never need more of them than ``table_tokens`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

from aegaeon.core.beams import Beam, BeamState
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.sampling import BeamParams
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.beam_search import BeamSearch
from aegaeon.engine.sampling.choice import Choice, LikeliestTokens
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.wire.messages import BeamOutput, Finished, Progress, SequenceState


@dataclass(slots=True)
class _Row:
    """A beam's KV: of how many tokens, prompt and output, and in which places after those that all share."""

    kv_tokens: int
    places: list[int]


class BeamSequence(LiveSequence):
    """Mutable state of one search on one instance."""

    def __init__(self, state: SequenceState, search: BeamParams, model: InstanceModel) -> None:
        super().__init__(state, model.eos_ids)
        self._shape: KvShape = model.kv_shape
        self._width = search.width
        self._begun = state.beams is not None
        beams = state.beams or BeamState((Beam(),))
        self._search = BeamSearch(state.sampling, search, model.eos_ids, beams)
        self._shared_tokens = self.prompt_tokens // self._shape.block_tokens * self._shape.block_tokens
        self._rows = [_Row(max(beam.kv_tokens, self._shared_tokens), list(beam.places)) for beam in beams.beams]
        self._unsaved: set[int] = set()  # places that were written to

    # --- steps ------------------------------------------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self._search.tokens

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def attended_tokens(self) -> int:
        return sum(row.kv_tokens for row in self._rows) if self._begun else self.kv_tokens

    def table_tokens(self, more_tokens: int = 0) -> int:
        tokens = self.context_tokens + more_tokens
        return self._shape.forked_tokens(self.prompt_tokens, tokens, self._width)

    def feedable(self, chunk_tokens: int, room_tokens: int) -> int:
        """Nothing where one of the rows would have no place."""
        if room_tokens < self.table_tokens():
            return 0
        if not self._begun:
            return min(self.unfed_tokens, chunk_tokens)
        missing = self._shared_tokens - self.kv_tokens
        if missing > 0:
            return min(missing, chunk_tokens)
        behind = self._behind
        return min(behind, chunk_tokens) if behind else self.rows

    @property
    def _behind(self) -> int:
        """Tokens to be fed before the rows can make a step together."""
        return sum(self.context_tokens - 1 - row.kv_tokens for row in self._rows)

    def ends_with(self, tokens: int) -> bool:
        if not self._begun:
            return tokens == self.unfed_tokens
        return self.kv_tokens >= self._shared_tokens and not self._behind

    @property
    def wishes(self) -> Sequence[LikeliestTokens]:
        return [self._search.wish] * self.rows

    def slices(self, tokens: int, blocks: Sequence[int]) -> list[SequenceSlice]:
        if not self._begun or self.kv_tokens < self._shared_tokens:
            return super().slices(tokens, blocks)
        last, common = self.ends_with(tokens), self._shared_tokens // self._shape.block_tokens
        made = []
        for number, feeds in self._feeds(tokens):
            row, ids = self._rows[number], self._token_ids(number)
            self._extend(row, row.kv_tokens + feeds)
            start = row.kv_tokens - self._shared_tokens
            table = [*blocks[:common], *(blocks[place] for place in row.places)]
            made.append(SequenceSlice(ids[start : start + feeds], row.kv_tokens, table, last))
        return made

    def _token_ids(self, number: int) -> list[int]:
        """A row's tokens after the prompt's whole blocks."""
        return [*self.token_ids[self._shared_tokens :], *self._search.beams[number].token_ids]

    def _feeds(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Which row feeds how many of the next ``tokens`` tokens: one each, or what the first ones are behind by."""
        step = not self._behind
        for number, row in enumerate(self._rows):
            feeds = min(tokens, 1 if step else self.context_tokens - 1 - row.kv_tokens)
            tokens -= feeds
            if feeds:
                yield number, feeds

    def _extend(self, row: _Row, tokens: int) -> None:
        """Have places for so many tokens."""
        needed = self._shape.blocks_for(tokens - self._shared_tokens) - len(row.places)
        if needed > 0:
            row.places += islice(self._free_places(self._rows), needed)

    def _free_places(self, rows: Sequence[_Row]) -> Iterator[int]:
        taken = {place for row in rows for place in row.places}
        return (place for place in count(self._shared_tokens // self._shape.block_tokens) if place not in taken)

    def feed(self, tokens: int) -> None:
        if not self._begun or self.kv_tokens < self._shared_tokens:
            super().feed(tokens)
            return
        for number, feeds in list(self._feeds(tokens)):
            row = self._rows[number]
            first = (row.kv_tokens - self._shared_tokens) // self._shape.block_tokens
            row.kv_tokens += feeds
            self._unsaved.update(row.places[first:])

    def search(self, chosen: Sequence[Choice]) -> list[tuple[int, int]]:
        """Take what may follow on each row; returns which block of the table is to be copied to which."""
        if not self._begun:
            self._fork_from_prompt()
        parents = self._search.step([one for one in chosen if isinstance(one, tuple)])
        return [] if self._search.over else self._part(parents)

    def _fork_from_prompt(self) -> None:
        """The prompt has been processed: there is one row, which has what is left of it behind its whole blocks."""
        self._begun = True
        first = self._shared_tokens // self._shape.block_tokens
        (row,) = self._rows
        row.kv_tokens = self.prompt_tokens
        row.places = list(range(first, self._shape.blocks_for(self.prompt_tokens)))
        self._unsaved.update(row.places)
        self.kv_tokens, self.saved_tokens = self._shared_tokens, min(self.saved_tokens, self._shared_tokens)

    def _part(self, parents: Sequence[int]) -> list[tuple[int, int]]:
        """New rows go on from old ones: the first of one has its places, others a copy of the one that is not full."""
        old, copies = self._rows, []
        used = [old[number] for number in dict.fromkeys(parents)]
        free, seen = self._free_places(used), set[int]()
        self._rows = []
        for number in parents:
            row = _Row(old[number].kv_tokens, list(old[number].places))
            if number in seen and row.kv_tokens % self._shape.block_tokens:
                copies.append((row.places[-1], next(free)))
                row.places[-1] = copies[-1][1]
            seen.add(number)
            self._rows.append(row)
        self._unsaved.update(target for _, target in copies)
        self._unsaved.intersection_update(place for row in self._rows for place in row.places)
        return copies

    # --- what is told -----------------------------------------------------------------------------------------------

    def end(self) -> Finished | None:
        if not self._search.over:
            return None
        outputs = tuple(self._output(one.token_ids) for one in self._search.outputs)
        made = sum(len(output.token_ids) for output in outputs)
        return Finished(self.request_id, outputs[0].reason, made, self.cached_tokens, outputs)

    def _output(self, token_ids: tuple[int, ...]) -> BeamOutput:
        reason = finish_reason(self.sampling.params, self.eos_ids, token_ids)
        assert reason is not None, "an output of a search ends by its tokens"
        return BeamOutput(token_ids, reason)

    def progress(self) -> Progress:
        said = super().progress()
        if not self._begun:
            return said
        rows = zip(self._search.beams, self._rows, strict=True)
        beams = tuple(replace(beam, places=tuple(row.places), kv_tokens=row.kv_tokens) for beam, row in rows)
        return replace(said, beams=BeamState(beams, self._search.finished))

    # --- where its KV is --------------------------------------------------------------------------------------------

    @property
    def saved(self) -> bool:
        return super().saved and not self._unsaved

    def all_saved(self) -> None:
        super().all_saved()
        self._unsaved.clear()

    def take_unsaved(self) -> Sequence[int]:
        unsaved = sorted(self._unsaved)
        self._unsaved.clear()
        return unsaved

    def forget_unsaved(self) -> None:
        super().forget_unsaved()
        if self._unsaved:
            self._unsaved.clear()
            self._rows = [_Row(self._shared_tokens, []) for _ in self._rows]

    def places(self, shape: KvShape) -> Sequence[int]:
        return [*super().places(shape), *sorted({place for row in self._rows for place in row.places})]
