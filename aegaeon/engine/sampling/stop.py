"""When a request's output ends by its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aegaeon.core.generation import FinishReason
from aegaeon.core.sampling import SamplingParams


def finish_reason(params: SamplingParams, eos_ids: Collection[int], generated: Sequence[int]) -> FinishReason | None:
    """Why the output ends with the last token of ``generated``, or None if it goes on.

    An end-of-sequence or stop token counts only once ``min_new_tokens`` are there; where it is also the last token
    that fits, the reason is ``STOP``.
    """
    if not generated:
        return None
    ends = generated[-1] in params.stop_token_ids or (not params.ignore_eos and generated[-1] in eos_ids)
    if ends and len(generated) >= params.min_new_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if len(generated) >= params.max_new_tokens else None
