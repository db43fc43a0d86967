"""What a block of KV is made of."""

import pytest

from aegaeon.core.kv_shape import KvShape, LayerKv, LayerState

STATES = (LayerState(0, True, 0, (3, 5), "bfloat16", 2), LayerState(0, False, 0, (2, 4), "float32", 4))
"""30 and 32 bytes."""


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        ((LayerKv(4, 128, 128),) * 28, "28x(2,32,4,128)"),
        ((LayerKv(1, 192, 128),) * 2, "2x(32,1,192+128)"),
        ((LayerKv(1, 64, 64), LayerKv(2, 64, 64)), "2x(mixed)"),
        ((), "2 states"),
    ],
)
def test_the_label_says_how_many_tokens_a_block_has(layers: tuple[LayerKv, ...], label: str) -> None:
    states = () if layers else STATES
    assert KvShape(layers, element_bytes=2, block_tokens=32, states=states).label == label


def test_states_and_what_they_are_of_come_behind_keys_and_values() -> None:
    shape = KvShape((LayerKv(1, 1, 1),), 2, block_tokens=5, states=STATES)
    assert shape.kv_bytes == 20
    assert shape.state_offsets == (24, 56, 88)
    assert (shape.content_bytes, shape.block_bytes) == (88, 96)
    assert KvShape(shape.layers, 2, block_tokens=5).block_bytes == 20


@pytest.mark.parametrize(
    ("resumes", "tokens", "end"), [(True, 0, 40), (True, 39, 40), (True, 40, 80), (False, 0, 40), (False, 3, 19)]
)
def test_a_step_ends_where_a_state_is_to_be_left(resumes: bool, tokens: int, end: int) -> None:
    state = LayerState(0, False, 0, (4,), "float32", 4, resumes)
    assert KvShape((), 4, block_tokens=40, states=(state,)).step_end(tokens) == end
    assert KvShape((LayerKv(1, 8, 8),)).step_end(tokens) is None
