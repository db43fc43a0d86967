"""What every device does, and the mistakes that every device refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from aegaeon.device.common.address_space import AddressSpace
from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.pending_copies import PendingCopies
from aegaeon.device.common.protocol import Device, Event, Stream, VirtualRange
from aegaeon.device.common.span import Span
from aegaeon.device.cuda.bindings import Bindings, BindingsDriver
from aegaeon.device.factory import make_device
from tests.device.fake_bindings import FakeBindings
from tests.device.fake_cuda_driver import FakeCudaDriver, cuda_device

PAGE = 4096


@pytest.fixture(params=["cpu", "lazy", "cuda", "cuda without batches", "cuda through bindings"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param.startswith("cuda"):
        yield from fake_cuda_device(request.param)
    else:
        made = make_device(request.param, pages=8, page_bytes=PAGE)
        yield made
        made.close()


def fake_cuda_device(kind: str) -> Iterator[Device]:
    fake = FakeCudaDriver(8 * PAGE, PAGE, batches="without" not in kind)
    made = cuda_device(BindingsDriver(Bindings(FakeBindings(fake)), 0) if "bindings" in kind else fake, 8, PAGE)
    yield made
    made.close()
    assert fake.leaks == {}


def numbers(count: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)


def test_a_range_is_rounded_up_and_counted(device: Device) -> None:
    first = device.reserve(PAGE + 1)
    assert first.size_bytes == 2 * PAGE
    device.reserve(PAGE)
    device.map(first, PAGE, [5])
    info = device.memory_info()
    assert (info.total_bytes, info.mapped_bytes, info.reserved_bytes) == (8 * PAGE, PAGE, 3 * PAGE)
    assert info.free_bytes == 7 * PAGE
    device.unmap(first, PAGE, PAGE)
    device.release(first)
    assert device.memory_info().reserved_bytes == PAGE


def test_a_view_is_the_memory_and_not_a_copy(device: Device) -> None:
    held = device.reserve(3 * PAGE)
    device.map(held, 0, [7, 2, 3])
    view = device.view(held, 256, (4, 512), torch.float32)
    view.copy_(numbers(2048).view(4, 512))
    again = device.view(held, 256 + 2048 * 3, (512,), torch.float32)
    assert again.tolist() == list(range(1536, 2048))
    assert view.data_ptr() == held.address + 256
    assert device.view(held, 0, (2, 0), torch.bfloat16).shape == (2, 0)
    assert device.view(held, 0, (), torch.int64).shape == ()


def test_a_view_keeps_its_address_while_pages_come_and_go(device: Device) -> None:
    held = device.reserve(PAGE)
    device.map(held, 0, [0])
    parameter = device.view(held, 0, (1024,), torch.float32)
    parameter.fill_(1.0)
    device.unmap(held, 0, PAGE)
    device.map(held, 0, [1])
    parameter.fill_(2.0)
    device.unmap(held, 0, PAGE)
    device.map(held, 0, [0])
    assert parameter.data_ptr() == held.address
    assert parameter.unique().tolist() == [1.0]


def test_a_round_trip_through_both_copy_streams(device: Device) -> None:
    held = device.reserve(PAGE)
    device.map(held, 0, [4])
    on_device = device.view(held, 0, (1024,), torch.float32)
    host, back = numbers(1024), torch.zeros(1024)
    device.pin(host)
    arrived = device.copy(on_device, host, Stream.COPY_IN)
    device.wait(Stream.COPY_OUT, arrived)
    left = device.copy(back, on_device, Stream.COPY_OUT)
    device.synchronize(left)
    assert torch.equal(back, numbers(1024))
    assert device.query(left)
    device.unpin(host)


def test_the_compute_stream_sees_what_it_waited_for(device: Device) -> None:
    held = device.reserve(2 * PAGE)
    device.map(held, 0, [0, 1])
    on_device = device.view(held, 0, (1024,), torch.float32)
    device.copy(on_device, numbers(1024), Stream.COPY_IN)
    device.wait(Stream.COMPUTE, device.record(Stream.COPY_IN))
    doubled = device.view(held, PAGE, (1024,), torch.float32)
    torch.mul(on_device, 2.0, out=doubled)
    back = torch.zeros(1024)
    device.wait(Stream.COPY_OUT, device.record(Stream.COMPUTE))
    device.synchronize(device.copy(back, doubled, Stream.COPY_OUT))
    assert torch.equal(back, 2.0 * numbers(1024))


def test_a_compute_copy_has_happened_for_what_follows(device: Device) -> None:
    back = torch.zeros(4)
    event = device.copy(back, numbers(4), Stream.COMPUTE)
    assert back.tolist() == [0.0, 1.0, 2.0, 3.0]
    device.synchronize(event)
    assert device.query(event)


def test_polling_comes_to_an_end(device: Device) -> None:
    back = torch.zeros(4)
    event = device.copy(back, numbers(4), Stream.COPY_OUT)
    while not device.query(event):
        pass
    assert back.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_copies_of_one_stream_land_in_order(device: Device) -> None:
    first, second, third = numbers(256), torch.zeros(256), torch.zeros(256)
    device.copy(second, first, Stream.COPY_IN)
    device.copy(third, second, Stream.COPY_IN)
    device.copy(first, torch.full((256,), 7.0), Stream.COPY_IN)
    device.copy(second, first, Stream.COPY_IN)
    device.synchronize(device.record(Stream.COPY_IN))
    assert torch.equal(third, numbers(256))
    assert torch.equal(second, torch.full((256,), 7.0))


def test_streams_that_wait_for_each_other_in_turn(device: Device) -> None:
    cells = [torch.full((512,), float(index)) for index in range(20)]
    streams = (Stream.COPY_IN, Stream.COPY_OUT)
    for index in range(1, 20):
        stream, other = streams[index % 2], streams[(index + 1) % 2]
        device.wait(stream, device.record(other))
        device.copy(cells[index], cells[index - 1], stream)
    device.synchronize(device.record(streams[19 % 2]))
    assert all(cell.eq(0.0).all() for cell in cells)


def test_an_empty_copy_is_fine(device: Device) -> None:
    device.synchronize(device.copy(torch.zeros(0), torch.zeros(0), Stream.COPY_IN))


def test_closing_twice_is_fine_and_nothing_is_reserved_afterwards(device: Device) -> None:
    device.reserve(PAGE)
    device.close()
    device.close()
    assert device.memory_info().reserved_bytes == 0
    with pytest.raises(DeviceError, match="closed"):
        device.reserve(PAGE)
    with pytest.raises(DeviceError, match="closed"):
        device.synchronize(device.copy(torch.zeros(1), torch.ones(1), Stream.COPY_IN))


Mistake = Callable[[Device, VirtualRange], object]

MISTAKES: dict[str, tuple[str, Mistake]] = {
    "reserve nothing": ("at least one", lambda d, r: d.reserve(0)),
    "map off the grid": ("multiples of the page size", lambda d, r: d.map(r, 100, [3])),
    "map past the end": ("leave the range", lambda d, r: d.map(r, 3 * PAGE, [3, 4])),
    "map before the start": ("leave the range", lambda d, r: d.map(r, -PAGE, [3])),
    "map a busy page": ("mapped twice", lambda d, r: d.map(r, 2 * PAGE, [1])),
    "map a page twice at once": ("mapped twice", lambda d, r: d.map(r, 2 * PAGE, [3, 3])),
    "map over pages": ("holds pages already", lambda d, r: d.map(r, PAGE, [3, 4])),
    "map a page that is not": (r"no pages \[8\]", lambda d, r: d.map(r, 2 * PAGE, [3, 8])),
    "map into a strange range": ("not reserved here", lambda d, r: d.map(VirtualRange(r.address, PAGE), 0, [3])),
    "unmap nothing": ("not mapped", lambda d, r: d.unmap(r, PAGE, 2 * PAGE)),
    "unmap half a page": ("multiples of the page size", lambda d, r: d.unmap(r, 0, 100)),
    "unmap past the end": ("leave the range", lambda d, r: d.unmap(r, 0, 5 * PAGE)),
    "release with pages": ("2 pages are mapped", lambda d, r: d.release(r)),
    "release a strange range": ("not reserved here", lambda d, r: d.release(VirtualRange(0, PAGE))),
    "view what is not mapped": ("not mapped", lambda d, r: d.view(r, PAGE, (1025,), torch.float32)),
    "view past the end": ("leave the range", lambda d, r: d.view(r, 4 * PAGE, (1,), torch.uint8)),
    "view off the grid": ("not aligned", lambda d, r: d.view(r, 2, (1,), torch.float32)),
    "copy another shape": ("one shape and dtype", lambda d, r: d.copy(numbers(4), numbers(5), Stream.COPY_IN)),
    "copy another dtype": ("one shape and dtype", lambda d, r: d.copy(numbers(4), numbers(4).int(), Stream.COPY_IN)),
    "copy pieces": ("not contiguous", lambda d, r: d.copy(numbers(4), numbers(8)[::2], Stream.COPY_IN)),
    "copy onto itself": ("overlap", lambda d, r: _copy_onto_itself(d)),
    "copy from nowhere": (
        "no memory here",
        lambda d, r: d.copy(numbers(4), torch.empty(4, device="meta"), Stream.COMPUTE),
    ),
    "copy into what went": ("not mapped", lambda d, r: _copy_after_unmap(d, r, into=True)),
    "copy from what went": ("not mapped", lambda d, r: _copy_after_unmap(d, r, into=False)),
    "pin twice": ("pinned already", lambda d, r: _pin_twice(d)),
    "unpin what is not": ("not pinned", lambda d, r: d.unpin(numbers(4))),
    "an event of another device": ("not of this device", lambda d, r: d.query(Event(Stream.COPY_IN, 1))),
}


def _copy_onto_itself(device: Device) -> None:
    memory = numbers(8)
    device.copy(memory[:5], memory[3:], Stream.COPY_IN)


def _copy_after_unmap(device: Device, held: VirtualRange, into: bool) -> None:
    view = device.view(held, 0, (1024,), torch.float32)
    device.unmap(held, 0, 2 * PAGE)
    pair = (view, numbers(1024)) if into else (numbers(1024), view)
    device.synchronize(device.copy(*pair, Stream.COPY_IN))


def _pin_twice(device: Device) -> None:
    memory = numbers(4)
    device.pin(memory)
    device.pin(memory[1:])


@pytest.mark.parametrize(("message", "mistake"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_and_changes_nothing(device: Device, message: str, mistake: Mistake) -> None:
    held = device.reserve(4 * PAGE)
    device.map(held, 0, [0, 1])
    with pytest.raises(DeviceError, match=message):
        mistake(device, held)
    if device.memory_info().mapped_bytes == 0:  # the mistake began with an unmap
        device.map(held, 0, [0, 1])
    device.map(held, 2 * PAGE, [2, 3])
    view = device.view(held, 0, (4096,), torch.float32)
    view.copy_(numbers(4096))
    assert torch.equal(view, numbers(4096))
    device.unmap(held, 0, 4 * PAGE)
    device.release(held)
    assert device.memory_info().reserved_bytes == 0


def test_memory_of_a_copy_under_way_is_kept() -> None:
    landed: set[Event] = set()
    copies = PendingCopies(landed.__contains__)
    first, second = Event(Stream.COPY_OUT, 1), Event(Stream.COPY_OUT, 2)
    copies.add(first, (Span(0, 100), Span(500, 100)))
    copies.add(second, (Span(100, 100), Span(600, 100)))
    copies.require_none(Span(200, 300), "unmap")
    with pytest.raises(DeviceError, match="cannot unmap 2 bytes that a copy on stream copy_out still needs"):
        copies.require_none(Span(599, 2), "unmap")
    landed.add(first)
    copies.require_none(Span(0, 100), "unmap")
    with pytest.raises(DeviceError, match="synchronize with its event first"):
        copies.require_none(Span(199, 1), "unmap")
    landed.add(second)
    copies.require_none(Span(0, 1000), "unmap")


def test_only_bytes_of_a_range_must_be_mapped() -> None:
    space = AddressSpace(pages=2, page_bytes=PAGE)
    held = VirtualRange(10 * PAGE, 2 * PAGE)
    space.enter(held)
    space.map(held, PAGE, [0])
    for host in (Span(9 * PAGE, PAGE), Span(12 * PAGE, 1), Span(0, 0)):
        space.require_mapped(host)
    space.require_mapped(Span(11 * PAGE, PAGE))
    with pytest.raises(DeviceError, match="not mapped"):
        space.require_mapped(Span(11 * PAGE - 1, 2))
    with pytest.raises(DeviceError, match="leave the range"):
        space.require_mapped(Span(12 * PAGE - 1, 2))


@pytest.mark.parametrize("kind", ["tpu", "CPU", ""])
def test_an_unknown_kind_names_the_kinds(kind: str) -> None:
    with pytest.raises(DeviceError, match="use one of cpu, lazy, cuda"):
        make_device(kind, pages=1, page_bytes=PAGE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_says_what_is_missing() -> None:
    with pytest.raises(DeviceError, match=r"there is no NVIDIA driver here|CUDA cannot be used|finds no device"):
        make_device("cuda", pages=1, page_bytes=PAGE)


@pytest.mark.parametrize(("pages", "page_bytes"), [(1, 0), (1, 100), (1, -PAGE), (-1, PAGE)])
def test_odd_sizes_are_refused(pages: int, page_bytes: int) -> None:
    with pytest.raises(DeviceError, match="pages"):
        make_device("cpu", pages=pages, page_bytes=page_bytes)


def test_a_device_without_pages_still_copies() -> None:
    device = make_device("cpu", pages=0, page_bytes=PAGE)
    back = torch.zeros(4)
    device.synchronize(device.copy(back, numbers(4), Stream.COPY_OUT))
    assert back.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert device.memory_info().total_bytes == 0
    device.close()
