"""A request under way, and what is tried next when its node is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aegaeon.core.generation import FinishReason
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.frontend.core.output_stream import OutputStream
from aegaeon.runtime.wire import messages as m


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A request that is not over: where it is, its client's end, and what was submitted.

    ``accepted``, ``begun``: what its driver has said of this try.
    """

    stream: OutputStream
    submit: m.Submit
    eos_ids: tuple[int, ...]
    node_id: str | None = None  # None: its node was lost, and there is no other
    tries: int = 1
    fruitless_losses: int = 0  # of nodes that were busy with it, since its last token
    accepted: bool = False
    begun: bool = False

    @property
    def whole(self) -> FinishReason | None:
        """Why the output is over, by its tokens alone; None where it goes on."""
        return finish_reason(self.submit.sampling, self.eos_ids, self.stream.token_ids)

    def after_loss(self, suspected: bool) -> UnderWay:
        """What is to be tried next: it goes on from the tokens that the client has, and its deadlines stay.

        ``suspected``: the driver may have died of it.

        It has a new id: what there still is of the last try, wherever that is, concerns nobody.
        """
        had, had_then = self.stream.rewind(), self.submit.generated_ids
        first = self.submit.request
        tries = self.tries + 1
        self.stream.request_id = f"{self.stream.first_id}~{tries}"
        moved = replace(
            first,
            request_id=self.stream.request_id,
            arrival_s=first.arrival_s + (len(had) - len(had_then)) * first.slo.tpot_s,
        )
        losses = (self.fruitless_losses if had == had_then else 0) + suspected
        cached = self.stream.cached_tokens if self.begun else self.submit.cached_tokens
        submit = replace(self.submit, request=moved, generated_ids=had, after=None, cached_tokens=cached)
        return UnderWay(self.stream, submit, self.eos_ids, tries=tries, fruitless_losses=losses)
