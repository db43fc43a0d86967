"""Copies to memory of the caller's: whole tensors, parts, fused targets; on the host and on devices."""

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import quick_model_loader as qml

from .conftest import MIB, SMALL_CHUNK_BYTES, Compile

STREAM = 0xBEEF


def fill(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-1000, 1000, shape, generator=generator).to(torch.bfloat16)


TENSORS = {
    "q": fill(1024, 512),
    "k": fill(256, 512),
    "v": fill(256, 512),
    "o": fill(512, 1024),
    "big": fill(2048, 1024),
    "experts": fill(4, 6, 10),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def found(tmp_path: Path) -> Iterator[qml.Entry]:
    """The tensors above, in chunks that are not neighbours in the arena."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    for number in range(8):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{number}.safetensors")
    with qml.Store(12 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES) as store:
        for number in range(8):
            store.load(tmp_path / f"{number}.safetensors", str(number)).result().close()
        for number in (1, 2, 4, 6):
            store.evict(str(number))
        with store.load(tmp_path / "model.safetensors", "model").result() as entry:
            yield entry


def into(name: str, target: torch.Tensor, **part: int) -> qml.Placement:
    return qml.Placement(name, target.data_ptr(), target.nbytes, **part)


def test_whole_tensors(found: qml.Entry) -> None:
    targets = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items() if tensor.numel()}
    plan = found.plan([into(name, target) for name, target in targets.items()])
    assert plan.nbytes == sum(target.nbytes for target in targets.values())
    for threads in (None, 1, 3):
        plan.copy(threads=threads)
        for name, target in targets.items():
            assert torch.equal(target, TENSORS[name])
            target.fill_(-1)


def test_neighbours_become_one_move(found: qml.Entry) -> None:
    memory = torch.empty(found.nbytes, dtype=torch.uint8)
    start = min(info.begin for info in found.tensors.values())
    end = max(info.end for info in found.tensors.values())
    placements = [qml.Placement(n, memory.data_ptr() + i.begin - start, i.nbytes) for n, i in found.tensors.items()]
    plan = found.plan(placements)
    assert (plan.moves, plan.nbytes) == (1, end - start)
    plan.copy()
    assert memory[: end - start].numpy().tobytes() == bytes(found)[start:end]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_tensor_parallel_parts_of_fused_parameters(found: qml.Entry, world: int) -> None:
    for rank in range(world):
        fused = torch.full((1536 // world, 512), -1, dtype=torch.bfloat16)
        placements, offset = [], 0
        for name in ("q", "k", "v"):
            placements.append(into(name, fused[offset:], dim=0, rank=rank, world=world))
            offset += TENSORS[name].shape[0] // world
        row = torch.full((512, 1024 // world), -1, dtype=torch.bfloat16)
        found.plan([*placements, into("o", row, dim=1, rank=rank, world=world)]).copy()
        expected = torch.cat([TENSORS[name].chunk(world)[rank] for name in ("q", "k", "v")])
        assert torch.equal(fused, expected)
        assert torch.equal(row, TENSORS["o"].chunk(world, 1)[rank])


def test_columns_side_by_side(found: qml.Entry) -> None:
    fused = torch.full((512, 1024), -1, dtype=torch.bfloat16)
    left = qml.Placement("o", fused.data_ptr(), fused.nbytes, dim=1, begin=512, end=1024, pitch=2048)
    right = qml.Placement("o", fused.data_ptr() + 1024, fused.nbytes - 1024, dim=1, begin=0, end=512, pitch=2048)
    found.plan([left, right]).copy()
    assert torch.equal(fused, TENSORS["o"].roll(512, 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2), st.integers(0, 10), st.integers(0, 10))
def test_any_part_is_what_indexing_gives(found: qml.Entry, dim: int, first: int, second: int) -> None:
    tensor = TENSORS["experts"]
    begin, end = sorted((min(first, tensor.shape[dim]), min(second, tensor.shape[dim])))
    expected = tensor.narrow(dim, begin, end - begin).contiguous()
    target = torch.full_like(expected, -1)
    address = target.data_ptr() or 1
    found.plan([qml.Placement("experts", address, target.nbytes, dim=dim, begin=begin, end=end)]).copy()
    assert torch.equal(target, expected)


@pytest.mark.parametrize(
    ("tensor", "capacity", "part", "message"),
    [
        ("nothing", 10**9, {}, "no such tensor"),
        ("q", 100, {}, "1048576 bytes of memory are needed, 100 were given"),
        ("q", 10**9, {"dim": 2, "rank": 0, "world": 2}, "dimension 2 of a tensor of shape"),
        ("q", 10**9, {"dim": 0, "rank": 0, "world": 3}, "cannot be cut into 3 equal parts"),
        ("q", 10**9, {"dim": 0, "rank": 2, "world": 2}, "elements 1024 to 1536 of dimension 0"),
        ("q", 10**9, {"dim": 1, "begin": 5, "end": 4}, "elements 5 to 4 of dimension 1"),
        ("q", 10**9, {"dim": 1, "begin": 0, "end": 4, "pitch": 7}, "do not fit at a distance of 7"),
    ],
)
def test_copies_that_make_no_sense(
    found: qml.Entry, tensor: str, capacity: int, part: dict[str, int], message: str
) -> None:
    with pytest.raises(qml.PlacementError, match=message) as caught:
        found.plan([qml.Placement(tensor, 4096, capacity, **part)])
    assert (caught.value.path, caught.value.tensor) == (found.path, tensor)


def test_wrong_arguments(found: qml.Entry) -> None:
    for part in ({"dim": 0}, {"rank": 0, "world": 1}, {"dim": 0, "begin": 0}, {"dim": 0, "begin": 0, "world": 1}):
        with pytest.raises(ValueError, match="whole tensor"):
            qml.Placement("q", 4096, 1, **part)
    with pytest.raises(qml.PlacementError, match="null"):
        found.plan([qml.Placement("q", 0, 10**9)])
    with pytest.raises(ValueError, match="threads"):
        found.plan([]).copy(threads=0)
    token = qml.CancelToken()
    token.cancel()
    with pytest.raises(qml.CancelledError):
        found.plan([qml.Placement("q", 4096, 1 << 30)]).copy(cancel=token)  # the address is not touched


def test_a_plan_keeps_the_lease(found: qml.Entry) -> None:
    target = torch.empty_like(TENSORS["q"])
    plan = found.plan([into("q", target)])
    found.close()
    plan.copy()
    assert torch.equal(target, TENSORS["q"])


class FakeCuda:
    """The test's side of the fake driver."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)

    def count(self, what: str) -> int:
        return int(self.library.fake_count(what.encode()))

    def fail(self, call: str, code: int, skip: int = 0) -> None:
        self.library.fake_fail(call.encode(), code, skip)


@pytest.fixture
def cuda(compile_c: Compile) -> Iterator[FakeCuda]:
    fake = FakeCuda(compile_c("fake_cuda.c"))
    yield fake
    gc.collect()
    assert [fake.count(what) for what in ("events", "contexts", "pinned", "registered")] == [0, 0, 0, 0]


@pytest.mark.parametrize("registered", [True, False])
def test_copies_to_a_device_are_asynchronous(found: qml.Entry, cuda: FakeCuda, registered: bool) -> None:
    device = qml.CudaDevice(1, library=cuda.path)
    if registered:
        device.register(found)
        device.register(found)
        assert (cuda.count("registered"), cuda.count("read-only")) == (1, 0)
    targets = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items() if tensor.numel()}
    part = torch.full((512, 256), -1, dtype=torch.bfloat16)
    placements = [into(name, target) for name, target in targets.items()]
    transfer = found.plan([*placements, into("o", part, dim=1, rank=3, world=4)]).copy_to(device, STREAM)
    assert transfer.event
    assert (cuda.count("pinned") == 0) == registered
    assert not transfer.done()
    if registered:
        assert all((target == -1).all() for target in targets.values())
    transfer.wait()
    transfer.wait()
    assert transfer.done()
    assert transfer.event is None
    for name, target in targets.items():
        assert torch.equal(target, TENSORS[name])
    assert torch.equal(part, TENSORS["o"].chunk(4, 1)[3])
    assert cuda.count("2d") > 0


def test_an_attached_process_registers_the_arena_read_only(found: qml.Entry, cuda: FakeCuda) -> None:
    attached = qml.attach(found.handle())
    device = qml.CudaDevice(library=cuda.path)
    device.register(attached)
    assert cuda.count("read-only") == 1
    target = torch.full_like(TENSORS["big"], -1)
    attached.plan([into("big", target)]).copy_to(device).wait()
    assert torch.equal(target, TENSORS["big"])
    assert cuda.count("pinned") == 0


def test_a_transfer_keeps_the_lease_until_it_is_done(found: qml.Entry, cuda: FakeCuda) -> None:
    device = qml.CudaDevice(library=cuda.path)
    device.register(found)
    target = torch.full_like(TENSORS["big"], -1)
    transfer = found.plan([into("big", target)]).copy_to(device, STREAM)
    found.close()
    del transfer  # dropping it waits
    gc.collect()
    assert torch.equal(target, TENSORS["big"])


def test_more_than_the_pinned_buffers_hold(tmp_path: Path, cuda: FakeCuda) -> None:
    big = torch.arange(48 * MIB // 8, dtype=torch.int64)
    save_file({"big": big}, tmp_path / "m.safetensors")
    with qml.Store(64 * MIB) as store, store.load(tmp_path).result() as entry:
        target = torch.zeros_like(big)
        device = qml.CudaDevice(library=cuda.path)
        entry.plan([into("big", target)]).copy_to(device, STREAM).wait()
        assert torch.equal(target, big)
        assert cuda.count("pinned") == 4


@pytest.mark.parametrize(
    ("call", "skip", "registered"),
    [
        ("cuEventCreate", 0, True),
        ("cuMemcpyHtoDAsync", 0, True),
        ("cuMemcpyHtoDAsync", 1, False),
        ("cuEventRecord", 0, True),
        ("cuMemHostAlloc", 0, False),
        ("cuMemHostAlloc", 2, False),
        ("cuCtxPushCurrent", 0, True),
    ],
)
def test_a_driver_that_fails(found: qml.Entry, cuda: FakeCuda, call: str, skip: int, registered: bool) -> None:
    device = qml.CudaDevice(library=cuda.path)
    if registered:
        device.register(found)
    targets = [torch.full_like(TENSORS[name], -1) for name in ("big", "o")]
    plan = found.plan([into("big", targets[0]), into("o", targets[1])])
    cuda.fail(call, 2, skip)
    with pytest.raises(qml.CudaError, match=rf"{call} failed: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        plan.copy_to(device, STREAM)
    plan.copy_to(device, STREAM).wait()
    assert torch.equal(targets[0], TENSORS["big"])
    assert torch.equal(targets[1], TENSORS["o"])


def test_a_copy_that_fails_on_the_device_is_told_by_the_transfer(found: qml.Entry, cuda: FakeCuda) -> None:
    device = qml.CudaDevice(library=cuda.path)
    device.register(found)
    target = torch.full_like(TENSORS["q"], -1)
    transfer = found.plan([into("q", target)]).copy_to(device)
    cuda.fail("cuEventQuery", 700)
    with pytest.raises(qml.CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        transfer.done()
    cuda.fail("cuEventSynchronize", 700)
    with pytest.raises(qml.CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        transfer.wait()
    transfer.wait()  # the fake recovers
    assert torch.equal(target, TENSORS["q"])


def test_an_arena_that_cannot_be_pinned_is_copied_through_buffers(found: qml.Entry, cuda: FakeCuda) -> None:
    device = qml.CudaDevice(library=cuda.path)
    cuda.fail("cuMemHostRegister", 1)
    with pytest.raises(qml.CudaError, match="cuMemHostRegister failed"):
        device.register(found)
    target = torch.full_like(TENSORS["q"], -1)
    found.plan([into("q", target)]).copy_to(device, STREAM).wait()
    assert torch.equal(target, TENSORS["q"])


def test_no_driver(cuda: FakeCuda, compile_c: Compile) -> None:
    with pytest.raises(qml.CudaError, match=r"no usable CUDA driver: .*libnothing\.so"):
        qml.CudaDevice(library="libnothing.so")
    with pytest.raises(qml.CudaError, match="lacks cuInit"):
        qml.CudaDevice(library=str(compile_c("faulty_io.c")))
    with pytest.raises(qml.CudaError, match="no usable CUDA driver"):
        qml.CudaDevice(library="nul\0byte")
    with pytest.raises(qml.CudaError, match=r"cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE \(101\)"):
        qml.CudaDevice(7, library=cuda.path)
    with pytest.raises(OverflowError):
        qml.CudaDevice(-1, library=cuda.path)


@pytest.mark.gpu
def test_a_real_device(found: qml.Entry) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = qml.CudaDevice()
    stream = torch.cuda.Stream()
    for registered in (False, True):
        if registered:
            device.register(found)
        target = torch.full_like(TENSORS["big"], -1, device="cuda")
        part = torch.full((512, 256), -1, dtype=torch.bfloat16, device="cuda")
        torch.cuda.synchronize()
        plan = found.plan([into("big", target), into("o", part, dim=1, rank=3, world=4)])
        plan.copy_to(device, stream.cuda_stream).wait()
        assert torch.equal(target.cpu(), TENSORS["big"])
        assert torch.equal(part.cpu(), TENSORS["o"].chunk(4, 1)[3])
