"""Names of blocks: equal for equal tokens behind equal ones, and for nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aegaeon.memory.token_hash import NAME_BYTES, block_names, next_name, packed, root_name

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(tokens=TOKENS, block_tokens=st.integers(1, 5))
def test_a_name_is_that_of_all_tokens_up_to_its_end(tokens: list[int], block_tokens: int) -> None:
    names = list(block_names(root_name("m"), tokens, block_tokens))
    assert len(names) == len(tokens) // block_tokens
    assert len({*names, root_name("m")}) == len(names) + 1
    assert all(len(name) == NAME_BYTES for name in names)
    for count, name in enumerate(names, start=1):
        before = names[count - 2] if count > 1 else root_name("m")
        assert next_name(before, packed(tokens[(count - 1) * block_tokens : count * block_tokens])) == name


def test_another_model_or_an_earlier_token_makes_other_names() -> None:
    names = [
        tuple(block_names(root_name(model), tokens, 2))
        for model, tokens in (("m", (1, 2, 3, 4)), ("n", (1, 2, 3, 4)), ("m", (2, 1, 3, 4)))
    ]
    assert len({second for _, second in names}) == 3
