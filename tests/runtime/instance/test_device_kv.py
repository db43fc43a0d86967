"""KV on a device: what goes out beside the steps, in which order, and that nothing waits that need not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aegaeon.core.kv_shape import KvShape, LayerKv, LayerState
from aegaeon.core.sampling import SamplingParams
from aegaeon.device.common.protocol import Device, Stream
from aegaeon.device.factory import make_device
from aegaeon.engine.attention.state_rows import state_tokens, usable_tokens
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.instance.device_kv import DeviceKv, copy_in_batches
from aegaeon.runtime.wire.messages import Member, SequenceState
from tests.device.fake_cuda_driver import FakeCudaDriver, cuda_device

SHAPE = KvShape((LayerKv(2, 8, 8),), 4, block_tokens=4)
WITH_STATE = KvShape(SHAPE.layers, 4, block_tokens=4, states=(LayerState(0, True, 0, (4,), "float32", 4),))
SLAB = 2 * SHAPE.block_bytes
PAGE = 4096
SLABS = 8
COPIES = ("cuMemcpyAsync", "cuMemcpyBatchAsync")


class Place:
    """A device with KV memory, and the host's slabs; block ``i`` of a request is filled with the byte ``i + 1``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        pages = -(-SLABS * SLAB // PAGE)
        place = device.reserve(pages * PAGE)
        device.map(place, 0, list(range(pages)))
        self.memory = device.view(place, 0, (SLABS * SLAB,), torch.uint8)
        self.host = torch.zeros(4 * SLABS * SLAB, dtype=torch.uint8)
        device.pin(self.host)
        self.kv = DeviceKv(device, self.memory, self.host, SLAB, {"m": SHAPE, "s": WITH_STATE})

    def sequence(
        self, name: str, tokens: int, first_block: int, kv_tokens: int = 0, shape: KvShape = SHAPE
    ) -> LiveSequence:
        """A request of ``tokens`` whose host blocks begin with number ``first_block``."""
        sampling = SamplingParams(max_new_tokens=4, seed=0)
        made = LiveSequence(SequenceState(name, "f", tuple(range(tokens)), tokens, kv_tokens, sampling), ())
        blocks = range(first_block, first_block + SHAPE.blocks_for(tokens + 4))
        made.seat(Member(name, tuple(block * shape.block_bytes for block in blocks)))
        return made

    def fetched(self, sequence: LiveSequence, model: str = "m") -> LiveSequence:
        while not self.kv.fetch(model, sequence):
            pass
        return sequence

    def step(self, sequence: LiveSequence, tokens: int) -> None:
        """Write KV as a step does, and let full blocks go."""
        for number in range(sequence.kv_tokens // 4, SHAPE.blocks_for(sequence.kv_tokens + tokens)):
            start = self.kv.blocks(sequence)[number]
            self.memory[start : start + SHAPE.block_bytes] = number + 1
        sequence.kv_tokens += tokens
        self.kv.write_back([sequence])

    def out(self, sequence: LiveSequence) -> list[int]:
        """What the host's blocks hold."""
        starts = sequence.blocks[: SHAPE.blocks_for(sequence.kv_tokens)]
        blocks = [self.host[start : start + SHAPE.block_bytes] for start in starts]
        return [int(block[0]) if bool((block == block[0]).all()) else -1 for block in blocks]

    def settle(self, sequence: LiveSequence) -> None:
        while not self.kv.saved(sequence):
            pass


@pytest.fixture
def driver() -> FakeCudaDriver:
    return FakeCudaDriver(64 * PAGE, PAGE)


@pytest.fixture(params=["cuda", "lazy", "cpu"])
def place(request: pytest.FixtureRequest, driver: FakeCudaDriver) -> Iterator[Place]:
    kind, pages = request.param, -(-SLABS * SLAB // PAGE)
    made = Place(
        cuda_device(driver, pages, PAGE) if kind == "cuda" else make_device(kind, pages=pages, page_bytes=PAGE)
    )
    yield made
    made.kv.close()
    made.device.close()


@pytest.fixture
def cuda(driver: FakeCudaDriver) -> Iterator[Place]:
    made = Place(cuda_device(driver, -(-SLABS * SLAB // PAGE), PAGE))
    yield made
    made.kv.close()
    made.device.close()
    assert driver.leaks == {}


def test_full_blocks_leave_beside_the_steps_and_the_end_leaves_only_the_last_one(place: Place) -> None:
    sequence = place.fetched(place.sequence("r", 10, 3))
    place.step(sequence, 9)
    place.step(sequence, 1)
    assert sequence.saved_tokens in (0, 8)
    place.kv.save([sequence])
    place.settle(sequence)
    assert sequence.saved_tokens == sequence.kv_tokens == 10
    assert place.out(sequence) == [1, 2, 3]


def test_nothing_waits_for_a_copy_out(cuda: Place, driver: FakeCudaDriver) -> None:
    sequence = cuda.fetched(cuda.sequence("r", 10, 0))
    before = driver.calls.count("cuEventSynchronize")
    cuda.step(sequence, 10)
    cuda.kv.save([sequence])
    assert not cuda.kv.saved(sequence)
    assert sequence.saved_tokens == 0, "told only when it is safe"
    assert cuda.kv.saved(sequence)
    assert driver.calls.count("cuEventSynchronize") == before


def test_a_block_goes_out_once_and_the_one_that_was_not_full_again(cuda: Place, driver: FakeCudaDriver) -> None:
    sequence = cuda.fetched(cuda.sequence("r", 20, 0))
    moved: list[int] = []
    copy_many = cuda.device.copy_many
    cuda.device.copy_many = lambda pairs, stream: (moved.append(len(pairs)), copy_many(pairs, stream))[1]  # type: ignore[method-assign]
    for tokens in (9, 1, 2, 1):
        cuda.step(sequence, tokens)
    cuda.kv.save([sequence])
    cuda.settle(sequence)
    cuda.step(sequence, 1)
    cuda.kv.save([sequence])
    cuda.settle(sequence)
    assert moved == [2, 1, 1, 1]
    assert cuda.out(sequence) == [1, 2, 3, 4]


def test_a_copy_out_is_ordered_after_the_step_that_wrote_it(
    cuda: Place, driver: FakeCudaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the step is not over yet; the fake's compute stream is never late, so it is made to look so."""
    sequence = cuda.fetched(cuda.sequence("r", 8, 0))
    monkeypatch.setattr(driver, "event_query", lambda event: driver.calls.append("cuEventQuery") is not None)
    del driver.calls[:]
    cuda.step(sequence, 8)
    monkeypatch.undo()
    ordered = [call for call in driver.calls if call in ("cuEventRecord", "cuStreamWaitEvent", *COPIES)]
    assert ordered == ["cuEventRecord", "cuStreamWaitEvent", "cuMemcpyBatchAsync", "cuEventRecord"]


def test_evicted_blocks_are_out_before_they_are_anothers(place: Place) -> None:
    """Both the device's, which the next request gets, and the host's, which the driver frees next."""
    first = place.fetched(place.sequence("first", 16, 0))
    place.step(first, 16)
    place.kv.evict("first")
    assert place.out(first) == [1, 2, 3, 4]
    second = place.fetched(place.sequence("second", 16, 8))
    place.memory.fill_(99)
    place.step(second, 16)
    assert place.out(first) == [1, 2, 3, 4]


def test_what_was_saved_comes_back_and_what_was_not_is_computed_again(place: Place) -> None:
    sequence = place.fetched(place.sequence("r", 10, 0))
    place.step(sequence, 10)
    place.kv.save([sequence])
    place.settle(sequence)
    sequence.kv_tokens += 1
    place.kv.evict("r")
    assert place.kv.saved(sequence), "nothing of it is here"
    place.memory.fill_(99)
    place.fetched(sequence)
    assert sequence.kv_tokens == 10
    starts = place.kv.blocks(sequence)[:3]
    assert [int(place.memory[start]) for start in starts] == [1, 2, 3]


def test_a_large_move_begins_before_all_of_it_is_made_ready(cuda: Place, driver: FakeCudaDriver) -> None:
    """Making ready takes the host half the time of moving: neither should wait for the other."""
    pairs = [(cuda.memory[index : index + 1], cuda.host[index : index + 1]) for index in range(70)]
    cuda.host[:70] = torch.arange(70)
    seen: list[int] = []

    def watched() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in pairs:
            seen.append(driver.calls.count("cuMemcpyBatchAsync"))
            yield pair

    cuda.device.synchronize(copy_in_batches(cuda.device, watched(), Stream.COPY_IN))
    assert cuda.memory[:70].tolist() == list(range(70))
    assert (seen[0], seen[40], seen[69]) == (0, 1, 2)


def test_who_found_no_room_is_brought_in_when_there_is_some(place: Place) -> None:
    """Not taken for here because its table is: it would be attended, and saved, as whatever lay there."""
    large = place.fetched(place.sequence("large", 8 * SLABS - 4, 0))
    place.host[20 * SHAPE.block_bytes : 22 * SHAPE.block_bytes] = 7
    waiting = place.sequence("waiting", 10, 20, kv_tokens=8)
    with pytest.raises(OutOfSlabsError):
        place.kv.fetch("m", waiting)
    place.kv.evict(large.request_id)
    place.fetched(waiting)
    starts = place.kv.blocks(waiting)[:2]
    assert [int(place.memory[start]) for start in starts] == [7, 7]


def test_a_state_counts_when_all_of_it_has_landed_and_not_while_it_is_overwritten(place: Place) -> None:
    sequence = place.fetched(place.sequence("r", 10, 0, shape=WITH_STATE), "s")
    for tokens in (4, 4, 2):  # each block is filled by a step of its own: states are of whole blocks
        place.step(sequence, tokens)
    place.kv.save([sequence])
    place.settle(sequence)
    blocks = sequence.blocks[:3]
    assert [state_tokens(place.host, WITH_STATE, block) for block in blocks] == [4, 8, 10]
    place.step(sequence, 1)
    place.kv.save([sequence])
    assert usable_tokens(place.host, WITH_STATE, blocks, 10) == 8, "its process may be killed now"
    place.settle(sequence)
    assert usable_tokens(place.host, WITH_STATE, blocks, 11) == 11


def test_who_comes_where_a_state_was_torn_goes_on_from_the_block_before(place: Place) -> None:
    sequence = place.fetched(place.sequence("r", 10, 0, shape=WITH_STATE), "s")
    for tokens in (4, 4, 2):
        place.step(sequence, tokens)
    place.kv.save([sequence])
    place.kv.evict("r")  # before anybody knew that it was safe
    other = place.fetched(place.sequence("r", 10, 0, kv_tokens=10, shape=WITH_STATE), "s")
    assert (other.kv_tokens, other.saved_tokens) in ((0, 0), (4, 4), (8, 8))
