"""What a block of KV is made of."""

import pytest

from aegaeon.core.kv_shape import KvShape, LayerKv


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        ((LayerKv(4, 128, 128),) * 28, "28x(2,32,4,128)"),
        ((LayerKv(1, 192, 128),) * 2, "2x(32,1,192+128)"),
        ((LayerKv(1, 64, 64), LayerKv(2, 64, 64)), "2x(mixed)"),
    ],
)
def test_the_label_says_how_many_tokens_a_block_has(layers: tuple[LayerKv, ...], label: str) -> None:
    assert KvShape(layers, element_bytes=2, block_tokens=32).label == label
