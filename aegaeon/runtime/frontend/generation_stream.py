"""A request under way, as its frontend sees it: token ids in, final text out.

Token k is taken once and in its place, whoever sends it: the tokens of one request come over several rings, which are
not ordered among each other, and after a crash another instance may send tokens again that the client has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from aegaeon.core.generation import Delta, FinishReason, GenerationError
from aegaeon.core.timeline import PhaseSpan
from aegaeon.runtime.frontend.prompt_encoder import EncodedPrompt
from aegaeon.runtime.frontend.text import StopStrings, TextStream
from aegaeon.runtime.wire.messages import BeamOutput


class GenerationStream:
    """One ``Generation``; ``stop(request_id)`` tells the driver that the client wants no more.

    ``request_id`` is what drivers know it by: ``first_id``, until one is lost.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        prompt: EncodedPrompt,
        arrival_s: float,
        text: Callable[[], TextStream],
        stops: StopStrings,
        stop: Callable[[str], None],
    ) -> None:
        self.request_id = self.first_id = request_id
        self.model = model
        self.prompt = prompt
        self.prompt_tokens = len(prompt.token_ids)
        self.cached_tokens = 0
        self.arrival_s = arrival_s
        self.token_ids: list[int] = []
        self.spans: list[PhaseSpan] = []
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._new_text = text
        self._text = text()
        self._stops = stops
        self._stop = stop
        self._deltas: asyncio.Queue[Delta | GenerationError] = asyncio.Queue()
        self._early: dict[int, Delta] = {}  # by index: tokens that came before one that precedes them
        self._ending: tuple[FinishReason, int] | None = None
        self.done = False

    # --- what the frontend hears ------------------------------------------------------------------------------------

    def accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def take_token(self, index: int, token_id: int, time_s: float, logprob: float = 0.0) -> None:
        """Token ``index`` of the output; one that is known already is ignored, one that is early waits.

        Output may come before the word that the request was accepted: it says so as well.
        """
        self.accept()
        if index >= len(self.token_ids):
            self._early[index] = Delta("", (token_id,), (time_s,), logprob=logprob)
        while not self.done and len(self.token_ids) in self._early:
            self._append(self._early.pop(len(self.token_ids)))
        self._end_if_complete()

    def finish(self, reason: FinishReason, generated_tokens: int) -> None:
        """The output has ``generated_tokens`` tokens, all of which are here or on their way."""
        self.accept()
        self._ending = reason, generated_tokens
        self._end_if_complete()

    def finish_search(self, outputs: Sequence[BeamOutput]) -> None:
        """These are the outputs of a search by beams, whole."""
        self.accept()
        for output in () if self.done else outputs:
            text = self._new_text()
            whole = "".join([*map(text.push, output.token_ids), text.finish()])
            self.token_ids += output.token_ids
            self._finish(Delta(whole, output.token_ids, finish_reason=output.reason))

    def rewind(self) -> tuple[int, ...]:
        """The tokens that the client has: the request goes on from them, wherever it does, and from nothing else."""
        self._early.clear()
        self._ending = None
        return tuple(self.token_ids)

    def _append(self, token: Delta) -> None:
        self.token_ids += token.token_ids
        text, hit = self._stops.push(self._text.push(*token.token_ids))
        if hit:
            self._stop(self.request_id)
            self._finish(replace(token, text=text, finish_reason=FinishReason.STOP))
        else:
            self._deltas.put_nowait(replace(token, text=text))

    def _end_if_complete(self) -> None:
        if self.done or self._ending is None or len(self.token_ids) < self._ending[1]:
            return
        text, hit = self._stops.push(self._text.finish())
        if hit:
            self._finish(Delta(text, (), finish_reason=FinishReason.STOP))
        else:
            self._finish(Delta(text + self._stops.finish(), (), finish_reason=self._ending[0]))

    def fail(self, error: GenerationError) -> None:
        """The request is over without success."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
        if not self.done:
            self.done = True
            self._deltas.put_nowait(error)

    def _finish(self, last: Delta) -> None:
        self.done = True
        self._deltas.put_nowait(last)

    # --- what the server uses ---------------------------------------------------------------------------------------

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def timeline(self) -> Sequence[PhaseSpan]:
        return sorted(self.spans, key=lambda span: span.start_s)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Delta]:
        try:
            while True:
                delta = await self._deltas.get()
                if isinstance(delta, GenerationError):
                    raise delta
                yield delta
                if delta.finish_reason is not None and self._deltas.empty():
                    return
        finally:
            await self.cancel()

    async def cancel(self) -> None:
        if not self.done:
            self.done = True
            self._stop(self.request_id)
