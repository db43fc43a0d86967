"""The CUDA backend over a driver that is as strict and as late as CUDA's documentation allows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Stream, VirtualRange
from aegaeon.device.cuda import inventory as cuda_inventory
from aegaeon.device.cuda.bindings import Bindings, BindingsDriver
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.device.cuda.driver import CudaError, NoCudaError
from aegaeon.device.cuda.memory import DlDeviceType, bytes_at
from tests.device.device_machine import DeviceMachine
from tests.device.fake_bindings import FakeBindings
from tests.device.fake_cuda_driver import FakeCudaDriver, cuda_device

PAGE = 8192
GRANULE = 4096
TOKENS = PAGE // 4


@pytest.fixture
def driver() -> FakeCudaDriver:
    return FakeCudaDriver(16 * PAGE, GRANULE, all_pinned=True)


@pytest.fixture
def device(driver: FakeCudaDriver) -> Iterator[CudaDevice]:
    made = cuda_device(driver, 4, PAGE)
    yield made
    made.close()
    assert driver.leaks == {}


@pytest.fixture
def held(device: CudaDevice) -> VirtualRange:
    reserved = device.reserve(4 * PAGE)
    device.map(reserved, 0, [0, 1, 2, 3])
    return reserved


def block(device: CudaDevice, held: VirtualRange, index: int) -> torch.Tensor:
    return device.view(held, index * PAGE, (TOKENS,), torch.float32)


def filled(value: float) -> torch.Tensor:
    return torch.full((TOKENS,), value)


# --- pages ------------------------------------------------------------------------------------------------------------


def test_pages_are_made_once_and_only_mapped_afterwards(device: CudaDevice, driver: FakeCudaDriver) -> None:
    held = device.reserve(2 * PAGE)
    for first in (0, 2, 1):
        device.map(held, 0, [first, first + 1])
        device.unmap(held, 0, 2 * PAGE)
    assert driver.calls.count("cuMemCreate") == 4
    assert "cuMemRelease" not in driver.calls
    assert driver.calls.count("cuMemSetAccess") == 3


@pytest.mark.parametrize("page_bytes", [GRANULE - 1, GRANULE + 512, 1])
def test_pages_must_fit_the_granularity(driver: FakeCudaDriver, page_bytes: int) -> None:
    with pytest.raises(DeviceError, match="make them a multiple of the device's 4096"):
        cuda_device(driver, 4, page_bytes)


def test_more_pages_than_memory_are_refused_and_leave_nothing(driver: FakeCudaDriver) -> None:
    with pytest.raises(DeviceError, match=r"has room for 16 of 17 pages.*lower --device-memory"):
        cuda_device(driver, 17, PAGE)
    driver.close()
    assert driver.leaks == {}


@pytest.mark.parametrize("call", ["cuMemMap", "cuMemSetAccess"])
def test_a_map_that_fails_half_way_leaves_nothing_mapped(device: CudaDevice, driver: FakeCudaDriver, call: str) -> None:
    held = device.reserve(2 * PAGE)
    driver.refuses.add(call)
    with pytest.raises(CudaError, match=f"{call} failed: CUDA_ERROR_NOT_PERMITTED"):
        device.map(held, 0, [0, 1])
    assert device.memory_info().mapped_bytes == 0
    driver.refuses.clear()
    device.map(held, 0, [1, 0])
    block(device, held, 0).fill_(1.0)


def test_closing_gives_everything_back_whatever_is_mapped_or_under_way(
    device: CudaDevice, held: VirtualRange, driver: FakeCudaDriver
) -> None:
    slab = torch.zeros(TOKENS)
    device.pin(slab)
    device.copy(slab, block(device, held, 3).fill_(3.0), Stream.COPY_OUT)
    device.close()
    assert driver.leaks == {}
    assert torch.equal(slab, filled(3.0))


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_batch_of_copies_is_one_call_and_one_event(
    device: CudaDevice, held: VirtualRange, driver: FakeCudaDriver
) -> None:
    pairs = [(block(device, held, index), filled(float(index))) for index in range(4)]
    landed = device.copy_many(pairs, Stream.COPY_IN)
    assert driver.calls.count("cuMemcpyBatchAsync") == 1
    assert "cuMemcpyAsync" not in driver.calls
    assert all(destination.isnan().all() for destination, _ in pairs)
    device.synchronize(landed)
    assert all(torch.equal(destination, source) for destination, source in pairs)


def test_batches_on_the_compute_stream_are_single_copies(
    device: CudaDevice, held: VirtualRange, driver: FakeCudaDriver
) -> None:
    device.copy_many([(block(device, held, index), filled(1.0)) for index in range(2)], Stream.COMPUTE)
    assert "cuMemcpyBatchAsync" not in driver.calls
    assert block(device, held, 1).eq(1.0).all()


def test_empty_copies_give_the_driver_no_work(device: CudaDevice, driver: FakeCudaDriver) -> None:
    device.synchronize(device.copy_many([(torch.zeros(0), torch.zeros(0))] * 3, Stream.COPY_IN))
    device.synchronize(device.copy_many([], Stream.COPY_IN))
    assert not {"cuMemcpyAsync", "cuMemcpyBatchAsync"} & set(driver.calls)


def test_a_source_lives_until_its_copy_has_landed(device: CudaDevice, held: VirtualRange) -> None:
    kv = block(device, held, 0)
    landed = device.copy(kv, filled(4.0), Stream.COPY_IN)
    gc.collect()
    device.synchronize(landed)
    assert kv.eq(4.0).all()


def test_events_are_used_again(device: CudaDevice, held: VirtualRange, driver: FakeCudaDriver) -> None:
    for _ in range(20):
        device.synchronize(device.copy(block(device, held, 0), filled(1.0), Stream.COPY_IN))
        device.query(device.record(Stream.COMPUTE))
    assert driver.calls.count("cuEventCreate") <= 3


def test_an_old_event_has_happened(device: CudaDevice, held: VirtualRange) -> None:
    first = device.copy(block(device, held, 0), filled(1.0), Stream.COPY_IN)
    device.synchronize(device.copy(block(device, held, 1), filled(1.0), Stream.COPY_IN))
    assert device.query(first)
    device.wait(Stream.COPY_OUT, first)
    device.synchronize(first)


def test_work_that_others_gave_to_a_stream_is_covered_by_its_next_event(
    device: CudaDevice, held: VirtualRange, driver: FakeCudaDriver
) -> None:
    kv, host = block(device, held, 0), filled(2.0)
    driver.memcpy_async(kv.data_ptr(), host.data_ptr(), kv.nbytes, device.stream_handle(Stream.COPY_IN))
    landed = device.record(Stream.COPY_IN)
    assert kv.isnan().all()
    device.wait(Stream.COMPUTE, landed)
    assert kv.eq(2.0).all()


# --- the four rules ---------------------------------------------------------------------------------------------------


def test_rule_1_a_step_waits_for_its_blocks(device: CudaDevice, held: VirtualRange) -> None:
    kv = block(device, held, 0)
    arrived = device.copy(kv, filled(3.0), Stream.COPY_IN)
    assert kv.isnan().all()
    device.wait(Stream.COMPUTE, arrived)
    assert kv.eq(3.0).all()


def test_rule_2_a_block_is_written_again_only_when_it_is_out(device: CudaDevice, held: VirtualRange) -> None:
    kv, slab = block(device, held, 0).fill_(1.0), torch.zeros(TOKENS)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    with pytest.raises(CudaError, match="two copies touch the same bytes"):
        device.copy(kv, filled(2.0), Stream.COPY_IN)
    device.wait(Stream.COPY_IN, left)
    device.synchronize(device.copy(kv, filled(2.0), Stream.COPY_IN))
    assert slab.eq(1.0).all()
    assert kv.eq(2.0).all()


def test_rule_3_a_copy_waits_for_what_produces_its_source(device: CudaDevice, held: VirtualRange) -> None:
    kv, slab, next_kv = block(device, held, 0).fill_(5.0), torch.zeros(TOKENS), block(device, held, 1)
    left = device.copy(slab, kv, Stream.COPY_OUT)
    with pytest.raises(CudaError, match="two copies touch the same bytes"):
        device.copy(next_kv, slab, Stream.COPY_IN)
    device.wait(Stream.COPY_IN, left)
    device.wait(Stream.COMPUTE, device.copy(next_kv, slab, Stream.COPY_IN))
    assert next_kv.eq(5.0).all()


def test_rule_4_a_switch_waits_for_copies_out(device: CudaDevice, held: VirtualRange) -> None:
    slab = torch.zeros(TOKENS)
    left = device.copy(slab, block(device, held, 1), Stream.COPY_OUT)
    with pytest.raises(DeviceError, match="that a copy on stream copy_out still needs"):
        device.unmap(held, 0, 4 * PAGE)
    device.synchronize(left)
    device.unmap(held, 0, 4 * PAGE)


# --- host memory ------------------------------------------------------------------------------------------------------


def test_memory_that_cannot_be_pinned_still_copies_and_a_warning_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = FakeCudaDriver(4 * PAGE, GRANULE)
    driver.refuses.add("cuMemHostRegister")
    device = cuda_device(driver, 1, PAGE)
    held, host = device.reserve(PAGE), filled(2.0)
    device.map(held, 0, [0])
    with caplog.at_level(logging.WARNING):
        device.pin(host)
    assert "cannot be pinned" in caplog.text
    assert "copies from and to it are slower" in caplog.text
    device.synchronize(device.copy(block(device, held, 0), host, Stream.COPY_IN))
    assert block(device, held, 0).eq(2.0).all()
    device.unpin(host)
    device.close()
    assert driver.leaks == {}


def test_pinned_memory_is_registered_until_it_is_unpinned(device: CudaDevice, driver: FakeCudaDriver) -> None:
    host = filled(1.0)
    device.pin(host)
    assert driver.leaks["registrations"] == 1
    device.unpin(host)
    assert "registrations" not in driver.leaks


# --- the fake refuses what CUDA refuses (or should) -------------------------------------------------------------------

Misuse = Callable[[FakeCudaDriver, int, int], object]
"""What is done with the driver, the address of two reserved pages, and the memory that is mapped at the first."""

MISUSES: dict[str, tuple[str, Misuse]] = {
    "memory off the granularity": ("no multiple", lambda d, a, h: d.mem_create(GRANULE + 1)),
    "addresses off the granularity": ("no multiple", lambda d, a, h: d.mem_address_reserve(100)),
    "mapping memory twice": ("mapped already", lambda d, a, h: d.mem_map(a + PAGE, PAGE, h)),
    "mapping over a mapping": ("mapped already", lambda d, a, h: d.mem_map(a, PAGE, d.mem_create(PAGE))),
    "mapping part of memory": ("part of the memory", lambda d, a, h: d.mem_map(a + PAGE, GRANULE, h)),
    "mapping where nothing is reserved": ("not reserved", lambda d, a, h: d.mem_map(a + 2 * PAGE, PAGE, h)),
    "mapping released memory": ("no such memory", lambda d, a, h: d.mem_map(a + PAGE, PAGE, 999)),
    "releasing what is mapped": ("it is mapped", lambda d, a, h: d.mem_release(h)),
    "freeing addresses of a mapping": ("memory is mapped there", lambda d, a, h: d.mem_address_free(a, 2 * PAGE)),
    "unmapping half": ("part of a mapping", lambda d, a, h: d.mem_unmap(a, GRANULE)),
    "unmapping more": ("not mapped throughout", lambda d, a, h: d.mem_unmap(a, 2 * PAGE)),
    "access to nothing": ("not mapped throughout", lambda d, a, h: d.mem_set_access(a + PAGE, PAGE)),
    "copying before access was set": ("not mapped", lambda d, a, h: d.memcpy_async(a, a + PAGE, 16, 0)),
    "copying past a mapping": ("not mapped", lambda d, a, h: _copy_past(d, a)),
    "an event that is gone": ("no such event", lambda d, a, h: _use_destroyed(d)),
    "a stream that is not": ("no such stream", lambda d, a, h: d.memcpy_async(a, a, 1, 77)),
    "an empty batch": ("no copies", lambda d, a, h: d.memcpy_batch_async([], [], [], d.stream_create())),
    "a batch on the default stream": ("default stream", lambda d, a, h: d.memcpy_batch_async([a], [a], [1], 0)),
    "unregistering what is not": ("NOT_REGISTERED", lambda d, a, h: d.mem_host_unregister(a)),
}


def _copy_past(driver: FakeCudaDriver, address: int) -> None:
    driver.mem_set_access(address, PAGE)
    host = torch.zeros(2 * PAGE, dtype=torch.uint8)
    driver.memcpy_async(address, host.data_ptr(), PAGE + 1, 0)


def _use_destroyed(driver: FakeCudaDriver) -> None:
    event = driver.event_create()
    driver.event_destroy(event)
    driver.event_query(event)


@pytest.mark.parametrize(("message", "misuse"), MISUSES.values(), ids=MISUSES.keys())
def test_the_fake_is_strict(message: str, misuse: Misuse) -> None:
    driver = FakeCudaDriver(8 * PAGE, GRANULE)
    address, handle = driver.mem_address_reserve(2 * PAGE), driver.mem_create(PAGE)
    driver.mem_map(address, PAGE, handle)
    with pytest.raises(CudaError, match=message):
        misuse(driver, address, handle)


# --- tensors, and what is found ---------------------------------------------------------------------------------------


def test_a_tensor_over_an_address_is_that_memory() -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    for _ in range(1000):  # records are freed with their tensors
        view = bytes_at(memory.data_ptr() + 8, 16, DlDeviceType.CPU)
    assert view.tolist() == list(range(8, 24))
    assert view.data_ptr() == memory.data_ptr() + 8
    part = view[4:12].view(torch.int32)
    del view
    part.zero_()
    assert memory[12:20].tolist() == [0] * 8


def test_the_bindings_say_what_failed() -> None:
    driver = FakeCudaDriver(2 * PAGE, GRANULE)
    real = BindingsDriver(Bindings(FakeBindings(driver)), 0)
    assert real.name == "Fake GPU"
    assert real.granularity_bytes == GRANULE
    with pytest.raises(CudaError, match=r"cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY \(the words for"):
        real.mem_create(3 * PAGE)
    with pytest.raises(NoCudaError, match=r"no CUDA device 1: this process may see 1 \(CUDA_VISIBLE_DEVICES\)"):
        BindingsDriver(Bindings(FakeBindings(driver)), 1)


def test_what_is_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeBindings(FakeCudaDriver(2 * PAGE, GRANULE))
    (found,) = cuda_inventory.find_gpus(lambda: Bindings(fake))
    assert (found.ordinal, found.name, found.total_bytes) == (0, "Fake GPU", 2 * PAGE)


def test_every_gpu_that_may_be_seen_is_found_and_pages_lie_on_the_right_one() -> None:
    fake = FakeBindings(FakeCudaDriver(2 * PAGE, GRANULE), devices=3)
    found = cuda_inventory.find_gpus(lambda: Bindings(fake), {"CUDA_VISIBLE_DEVICES": "4,5,GPU-8932f937"})
    assert [(gpu.ordinal, gpu.visible) for gpu in found] == [(0, ""), (1, ""), (2, "")]
    assert fake.used == [0, 1, 2]
    driver = BindingsDriver(Bindings(fake), 1)
    driver.mem_create(PAGE)  # the fake asks whether it is on the device whose context was taken last
    assert fake.used[-1] == 1


def test_of_several_mig_slices_each_process_is_shown_one() -> None:
    fake = FakeBindings(FakeCudaDriver(2 * PAGE, GRANULE))
    environment = {"CUDA_VISIBLE_DEVICES": "MIG-11, MIG-22"}
    found = cuda_inventory.find_gpus(lambda: Bindings(fake), environment)
    assert [(gpu.ordinal, gpu.visible) for gpu in found] == [(0, "MIG-11"), (0, "MIG-22")]
    assert cuda_inventory.unseen_devices(len(found), environment) == ""
    alone = cuda_inventory.find_gpus(
        lambda: Bindings(FakeBindings(FakeCudaDriver(2 * PAGE, GRANULE))), {"CUDA_VISIBLE_DEVICES": "MIG-11"}
    )
    assert [gpu.visible for gpu in alone] == [""]


def test_a_list_that_names_more_than_there_is_is_told() -> None:
    assert "lists 3 devices, of which 2 can be used" in cuda_inventory.unseen_devices(
        2, {"CUDA_VISIBLE_DEVICES": "0,1,9"}
    )
    assert cuda_inventory.unseen_devices(2, {}) == ""


class CudaDeviceMachine(DeviceMachine):
    def make(self) -> CudaDevice:
        self.driver = FakeCudaDriver((self.PAGES + 1) * 4096, 4096, all_pinned=True)
        return cuda_device(self.driver, self.PAGES, 4096)

    def check_closed(self) -> None:
        assert self.driver.leaks == {}


TestCudaDeviceMachine = CudaDeviceMachine.TestCase
TestCudaDeviceMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
