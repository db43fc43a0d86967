"""The CPU device: real mappings, real threads, and nothing left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from aegaeon.device.common import virtual_memory
from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Stream
from aegaeon.device.cpu.copy_thread import CopyThread
from aegaeon.device.cpu.device import CpuDevice
from tests.device.device_machine import DeviceMachine

PAGE = 4096
HUGE = virtual_memory.HUGE_PAGE_BYTES


def make(pages: int, page_bytes: int = PAGE) -> CpuDevice:
    return CpuDevice(pages, page_bytes, memory_flag="--device-bytes")


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    made = make(8)
    yield made
    made.close()


def mappings() -> list[tuple[int, int, str, str]]:
    """(start, end, protection, file) of this process's mappings."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return [
        (*(int(end, 16) for end in fields[0].split("-")), fields[1], fields[5] if len(fields) > 5 else "")
        for fields in lines
    ]


def protection_at(address: int) -> str:
    return next(protection for start, end, protection, _ in mappings() if start <= address < end)


def device_files() -> list[str]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in map(os.fspath, map(Path.readlink, links)) if "aegaeon-cpu" in target]


def test_unmapped_places_cannot_be_touched(device: CpuDevice) -> None:
    held = device.reserve(3 * PAGE)
    device.map(held, PAGE, [0])
    assert [protection_at(held.address + index * PAGE) for index in range(3)] == ["---p", "rw-s", "---p"]
    device.unmap(held, PAGE, PAGE)
    assert protection_at(held.address + PAGE) == "---p"


def test_a_page_takes_its_bytes_along(device: CpuDevice) -> None:
    first, second = device.reserve(2 * PAGE), device.reserve(2 * PAGE)
    device.map(first, 0, [3, 6])
    device.view(first, 0, (2 * PAGE,), torch.uint8)[PAGE:] = 66
    device.unmap(first, 0, 2 * PAGE)
    device.map(second, 0, [6])
    assert device.view(second, 0, (PAGE,), torch.uint8).unique().tolist() == [66]


def test_neighbouring_pages_are_one_mapping(device: CpuDevice) -> None:
    held = device.reserve(6 * PAGE)
    device.map(held, 0, [2, 3, 4, 0, 1, 7])
    inside = [end - start for start, end, _, _ in mappings() if held.address <= start < held.end]
    assert inside == [3 * PAGE, 2 * PAGE, PAGE]


def test_closing_leaves_no_file_no_mapping_and_no_thread() -> None:
    assert not device_files()
    threads = threading.active_count()
    device = make(4)
    ranges = [device.reserve(5 * PAGE) for _ in range(3)]
    device.map(ranges[1], PAGE, [0, 3])
    device.synchronize(device.copy(torch.zeros(4), torch.ones(4), Stream.COPY_OUT))
    assert len(device_files()) == 1
    assert threading.active_count() == threads + 2
    device.close()
    assert not device_files()
    assert not [mapping for mapping in mappings() if "aegaeon-cpu" in mapping[3]]
    assert threading.active_count() == threads


def test_reserving_and_releasing_leaves_no_mapping(device: CpuDevice) -> None:
    for _ in range(3):
        device.release(device.reserve(64 * HUGE))
    before = len(mappings())
    for _ in range(200):
        held = device.reserve(3 * PAGE)
        device.map(held, 0, [0, 5, 2])
        device.unmap(held, 0, 3 * PAGE)
        device.release(held)
    assert len(mappings()) <= before + 5


def test_a_landed_copy_keeps_nothing_alive(device: CpuDevice) -> None:
    source = torch.ones(1000)
    gone = weakref.ref(source)
    event = device.copy(torch.zeros(1000), source, Stream.COPY_IN)
    del source
    device.synchronize(event)
    gc.collect()
    assert gone() is None


def test_pages_under_a_copy_stay(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), ctypes.memmove
    monkeypatch.setattr(ctypes, "memmove", lambda *arguments: gate.wait(10) and real(*arguments))
    held = device.reserve(2 * PAGE)
    device.map(held, 0, [0, 1])
    host = torch.ones(PAGE)
    device.pin(host)
    event = device.copy(device.view(held, 0, (PAGE,), torch.uint8), torch.ones(PAGE, dtype=torch.uint8), Stream.COPY_IN)
    device.wait(Stream.COPY_OUT, event)
    left = device.copy(host[:1024], device.view(held, 0, (1024,), torch.float32), Stream.COPY_OUT)
    assert not device.query(event)
    with pytest.raises(DeviceError, match="still needs: synchronize with its event first"):
        device.unmap(held, 0, PAGE)
    with pytest.raises(DeviceError, match="cannot unpin"):
        device.unpin(host)
    device.unmap(held, PAGE, PAGE)
    gate.set()
    device.synchronize(event)
    device.synchronize(left)
    device.unmap(held, 0, PAGE)
    device.unpin(host)


def test_a_copy_works_on_parameters_that_need_gradients(device: CpuDevice) -> None:
    parameter = torch.nn.Parameter(torch.zeros(8))
    device.synchronize(device.copy(parameter, torch.ones(8), Stream.COPY_IN))
    assert parameter.tolist() == [1.0] * 8


def test_huge_pages_keep_their_bytes_through_mappings() -> None:
    device = make(3, HUGE)
    held = device.reserve(3 * HUGE)
    device.map(held, 0, [2, 0])
    words = HUGE // 8
    device.view(held, 0, (2 * words,), torch.int64).copy_(torch.arange(2 * words))
    device.unmap(held, 0, 2 * HUGE)
    device.map(held, 0, [0, 1, 2])
    view = device.view(held, 0, (3, words), torch.int64)
    assert torch.equal(view[2], torch.arange(words))
    assert torch.equal(view[0], torch.arange(words, 2 * words))
    device.close()


def test_pages_become_huge_where_the_kernel_agrees() -> None:
    device = make(2, 2 * HUGE)
    held = device.reserve(4 * HUGE)
    device.map(held, 0, [1, 0])
    if not virtual_memory.collapse(held.address, 2 * HUGE):
        device.close()
        pytest.skip("this kernel collapses no shared memory")
    device.unmap(held, 0, 4 * HUGE)
    device.map(held, 0, [0, 1])
    device.view(held, 0, (4 * HUGE,), torch.uint8).fill_(1)
    smaps = Path("/proc/self/smaps").read_text().split(f"{held.address:x}-", 1)[1]
    huge_kib = next(line.split()[1] for line in smaps.splitlines() if line.startswith("ShmemPmdMapped"))
    device.close()
    assert int(huge_kib) * 1024 == 4 * HUGE


def test_too_many_mappings_are_a_clear_error(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    held = device.reserve(4 * PAGE)
    real, calls = virtual_memory.map_at, 0

    def fail_second(*arguments: int, populate: bool) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(12, "Cannot allocate memory")
        real(*arguments, populate=populate)

    monkeypatch.setattr(virtual_memory, "map_at", fail_second)
    with pytest.raises(DeviceError, match=r"use larger pages, or raise vm.max_map_count"):
        device.map(held, 0, [0, 2, 4])
    assert device.memory_info().mapped_bytes == 0
    assert protection_at(held.address) == "---p"
    device.map(held, 0, [0, 2, 4])


def test_a_copy_thread_works_in_order_beside_its_caller() -> None:
    thread, gate, seen = CopyThread("test"), threading.Event(), list[int]()
    first = thread.submit(gate.wait)
    last = [thread.submit(lambda number=number: seen.append(number)) for number in range(5)][-1]
    assert not thread.is_done(first)
    assert seen == []
    gate.set()
    thread.wait(last)
    assert seen == [0, 1, 2, 3, 4]
    assert thread.issued == last == 6
    thread.close()


def test_a_closing_copy_thread_finishes_its_work() -> None:
    thread, gate, seen = CopyThread("test"), threading.Event(), list[int]()
    thread.submit(gate.wait)
    thread.submit(lambda: seen.append(1))
    gate.set()
    thread.close()
    thread.close()
    assert seen == [1]
    with pytest.raises(DeviceError, match="closed"):
        thread.submit(gate.wait)


class CpuDeviceMachine(DeviceMachine):
    def make(self) -> CpuDevice:
        return make(self.PAGES)

    def check_closed(self) -> None:
        assert not device_files()


TestCpuDevice = CpuDeviceMachine.TestCase
TestCpuDevice.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
