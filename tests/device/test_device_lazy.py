"""The four ordering rules of KV transfers: keeping them gives the right bytes, breaking any is noticed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Device, Stream, VirtualRange
from aegaeon.device.factory import make_device

PAGE = 4096
TOKENS = PAGE // 4


@pytest.fixture
def device() -> Iterator[Device]:
    made = make_device("lazy", pages=4, page_bytes=PAGE)
    yield made
    made.close()


@pytest.fixture
def pages(device: Device) -> VirtualRange:
    held = device.reserve(4 * PAGE)
    device.map(held, 0, [0, 1, 2, 3])
    return held


def block(device: Device, pages: VirtualRange, index: int) -> torch.Tensor:
    return device.view(pages, index * PAGE, (TOKENS,), torch.float32)


def filled(value: float) -> torch.Tensor:
    return torch.full((TOKENS,), value)


def test_rule_1_a_step_waits_for_its_blocks(device: Device, pages: VirtualRange) -> None:
    kv = block(device, pages, 0)
    arrived = device.copy(kv, filled(3.0), Stream.COPY_IN)
    assert kv.sum().isnan(), "a step that did not wait"
    device.wait(Stream.COMPUTE, arrived)
    assert kv.sum().item() == 3.0 * TOKENS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_rule_1_shows_in_every_type(device: Device, pages: VirtualRange, dtype: torch.dtype) -> None:
    as_bytes = device.view(pages, 0, (PAGE,), torch.uint8)
    device.copy(as_bytes, torch.zeros(PAGE, dtype=torch.uint8), Stream.COPY_IN)
    assert device.view(pages, 0, (PAGE // dtype.itemsize,), dtype).to(torch.float64).isnan().all()


def test_rule_2_a_block_is_written_again_only_when_it_is_out(device: Device, pages: VirtualRange) -> None:
    kv, slab = block(device, pages, 0).fill_(1.0), torch.zeros(TOKENS)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    device.synchronize(left)
    kv.fill_(2.0)
    assert torch.equal(slab, filled(1.0))


def test_rule_2_broken_by_a_step_gives_the_wrong_bytes(device: Device, pages: VirtualRange) -> None:
    kv, slab = block(device, pages, 0).fill_(1.0), torch.zeros(TOKENS)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    kv.fill_(2.0)
    device.synchronize(left)
    assert torch.equal(slab, filled(2.0)), "the next owner's bytes in the first one's slab block"


def test_rule_2_kept_by_the_stream_that_brings_the_next_owner_in(device: Device, pages: VirtualRange) -> None:
    kv, slab = block(device, pages, 0).fill_(1.0), torch.zeros(TOKENS)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    device.wait(Stream.COPY_IN, left)
    arrived = device.copy(kv, filled(2.0), Stream.COPY_IN)
    device.wait(Stream.COMPUTE, arrived)
    assert torch.equal(kv, filled(2.0))
    assert torch.equal(slab, filled(1.0))


def test_rule_2_broken_by_a_copy_is_refused(device: Device, pages: VirtualRange) -> None:
    kv, slab = block(device, pages, 0).fill_(1.0), torch.zeros(TOKENS)
    device.copy(slab, kv, Stream.COPY_OUT)
    with pytest.raises(DeviceError, match="copy 1 of stream copy_out touch the same bytes"):
        device.copy(kv, filled(2.0), Stream.COPY_IN)
    with pytest.raises(DeviceError, match="let the stream wait for that one's event first"):
        device.copy(kv, filled(2.0), Stream.COMPUTE)


def test_rule_3_a_copy_waits_for_what_produces_its_source(device: Device, pages: VirtualRange) -> None:
    kv, slab, next_kv = block(device, pages, 0).fill_(5.0), torch.zeros(TOKENS), block(device, pages, 1)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    device.wait(Stream.COPY_IN, left)
    arrived = device.copy(next_kv, slab, Stream.COPY_IN)
    device.wait(Stream.COMPUTE, arrived)
    assert torch.equal(next_kv, filled(5.0))


def test_rule_3_broken_is_refused(device: Device, pages: VirtualRange) -> None:
    slab = torch.zeros(TOKENS)
    device.copy(slab, block(device, pages, 0).fill_(5.0), Stream.COPY_OUT)
    with pytest.raises(DeviceError, match="touch the same bytes, in either order"):
        device.copy(block(device, pages, 1), slab, Stream.COPY_IN)


def test_rule_3_an_order_may_lead_through_other_copies(device: Device, pages: VirtualRange) -> None:
    first, second, third = (block(device, pages, index) for index in range(3))
    host, back = filled(6.0), torch.zeros(TOKENS)
    device.wait(Stream.COPY_OUT, device.copy(first, host, Stream.COPY_IN))
    device.wait(Stream.COPY_IN, device.copy(back, first, Stream.COPY_OUT))
    device.copy(second, back, Stream.COPY_IN)
    device.copy(third, second, Stream.COPY_IN)
    last = device.copy(first, filled(9.0), Stream.COPY_IN)
    assert first.isnan().all()
    device.synchronize(last)
    assert torch.equal(third, filled(6.0))
    assert torch.equal(first, filled(9.0))


def test_rule_4_a_switch_waits_for_copies_out(device: Device, pages: VirtualRange) -> None:
    kv, slab = block(device, pages, 0).fill_(1.0), torch.zeros(TOKENS)
    device.copy(slab, kv, Stream.COPY_OUT)
    device.synchronize(device.record(Stream.COPY_OUT))
    device.unmap(pages, 0, 4 * PAGE)
    assert torch.equal(slab, filled(1.0))


def test_rule_4_broken_by_a_remapping_switch_is_refused(device: Device, pages: VirtualRange) -> None:
    left = device.copy(torch.zeros(TOKENS), block(device, pages, 1), Stream.COPY_OUT)
    with pytest.raises(DeviceError, match="cannot unmap 16384 bytes that a copy on stream copy_out still needs"):
        device.unmap(pages, 0, 4 * PAGE)
    device.unmap(pages, 0, PAGE)
    device.synchronize(left)
    device.unmap(pages, PAGE, 3 * PAGE)


def test_rule_4_broken_by_an_overwriting_switch_gives_the_wrong_bytes(device: Device, pages: VirtualRange) -> None:
    slab = torch.zeros(TOKENS)
    left = device.copy(slab, block(device, pages, 0).fill_(1.0), Stream.COPY_OUT)
    weights = device.view(pages, 0, (2 * TOKENS,), torch.float32)
    weights.fill_(8.0)
    device.synchronize(left)
    assert torch.equal(slab, filled(8.0))


def test_pinned_memory_stays_pinned_under_a_copy(device: Device, pages: VirtualRange) -> None:
    slab = torch.zeros(TOKENS)
    device.pin(slab)
    left = device.copy(slab, block(device, pages, 0), Stream.COPY_OUT)
    with pytest.raises(DeviceError, match="cannot unpin 4096 bytes"):
        device.unpin(slab)
    device.synchronize(left)
    device.unpin(slab)


def test_a_copy_has_not_happened_when_asked_the_first_time(device: Device) -> None:
    back = torch.zeros(2)
    event = device.copy(back, torch.ones(2), Stream.COPY_IN)
    assert not device.query(event)
    assert back.isnan().all()
    assert device.query(event)
    assert torch.equal(back, torch.ones(2))


def test_waiting_for_one_copy_lands_no_later_one(device: Device) -> None:
    first, second = torch.zeros(2), torch.zeros(2)
    landed = device.copy(first, torch.ones(2), Stream.COPY_IN)
    device.copy(second, torch.ones(2), Stream.COPY_IN)
    device.synchronize(landed)
    assert torch.equal(first, torch.ones(2))
    assert second.isnan().all()


def test_copies_that_nobody_waits_for_are_lost_with_the_device() -> None:
    device = make_device("lazy", pages=0, page_bytes=PAGE)
    back = torch.zeros(2)
    device.copy(back, torch.ones(2), Stream.COPY_OUT)
    device.close()
    assert back.isnan().all()
