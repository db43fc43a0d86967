"""How outputs end by their tokens."""

from __future__ import annotations

import pytest

from aegaeon.core.generation import FinishReason
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.sampling.stop import finish_reason

EOS = frozenset({9, 10})


@pytest.mark.parametrize(
    ("settings", "generated", "expected"),
    [
        ({}, [], None),
        ({}, [1, 2], None),
        ({}, [1, 9], FinishReason.STOP),
        ({}, [10], FinishReason.STOP),
        ({}, [9, 1], None),  # only the last token counts
        ({"ignore_eos": True}, [1, 9], None),
        ({"ignore_eos": True, "stop_token_ids": (9,)}, [1, 9], FinishReason.STOP),
        ({"stop_token_ids": (4,)}, [4], FinishReason.STOP),
        ({"max_new_tokens": 2}, [1, 2], FinishReason.LENGTH),
        ({"max_new_tokens": 2}, [1, 9], FinishReason.STOP),
        ({"max_new_tokens": 2, "ignore_eos": True}, [1, 9], FinishReason.LENGTH),
        ({"min_new_tokens": 3}, [1, 9], None),
        ({"min_new_tokens": 3}, [1, 2, 3, 9], FinishReason.STOP),
    ],
)
def test_finish_reason(settings: dict[str, object], generated: list[int], expected: FinishReason | None) -> None:
    assert finish_reason(SamplingParams(**settings), EOS, generated) is expected
