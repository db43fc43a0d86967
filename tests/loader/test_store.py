"""Many models in one arena: loads, leases, what goes when there is no room, and what never goes."""

import gc
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quick_model_loader as qml

from .conftest import MIB, SMALL_CHUNK_BYTES, WriteFile, entry, wait_until

WriteModel = Callable[..., Path]


def leases(store: qml.Store) -> int:
    gc.collect()
    return store.stats().leases


def test_a_model_becomes_tensors_without_a_copy(tmp_path: Path, store: qml.Store) -> None:
    tensors = {
        "a": torch.arange(600, dtype=torch.bfloat16).reshape(2, 300),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = store.load(tmp_path).result()
    assert set(found.tensors) == set(tensors)
    views = found.torch_all()
    for name, expected in load_file(tmp_path / "model.safetensors").items():
        for view in (found.torch(name), views[name]):
            assert view.dtype == expected.dtype
            assert torch.equal(view, expected)
    assert found.torch("a").data_ptr() == found.address + found.offset("a") == views["a"].data_ptr()
    assert bytes(found.bytes("a")) == bytes(tensors["a"].view(torch.uint8).numpy())
    assert bytes(found)[: found.files[0].bytes] == found.files[0].path.read_bytes()
    whole = found.torch_bytes()
    assert (whole.dtype, whole.shape, whole.data_ptr()) == (torch.uint8, (found.nbytes,), found.address)
    assert found.report is not None
    assert found.report.bytes == found.files[0].bytes
    assert (found.path, found.key, found.file_offsets) == (tmp_path, str(tmp_path), (0,))
    with pytest.raises(KeyError):
        found.torch("b")
    with pytest.raises(KeyError):
        found.bytes("b")


def test_every_dtype_of_the_format(write_file: WriteFile, store: qml.Store) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BF16": 16, "F16": 16, "I16": 16, "U16": 16, "C64": 64}
    bits |= {"F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64}
    names = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", *bits]
    header, end = {}, 0
    for name in names:
        nbytes = 8 * bits.get(name, 8) // 8
        header[name] = entry(name, [2, 4], end, end + nbytes)
        end += nbytes
    found = store.load(write_file("m.safetensors", header, bytes(i % 2 for i in range(end)))).result()
    for name in names:
        assert len(found.bytes(name)) == bits.get(name, 8)
        if name.startswith("F6_"):
            with pytest.raises(qml.DtypeError, match=r"Entry\.bytes"):
                found.torch(name)
        else:
            view = found.torch(name)
            assert view.shape == ((2, 2) if name == "F4" else (2, 4))
            assert bytes(view.view(torch.uint8).numpy()) == bytes(found.bytes(name))


def test_a_lease_lasts_as_long_as_the_last_view(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100))
    found = ticket.result()
    assert found is ticket.result()
    assert leases(store) == 1
    view, raw, whole = found.torch("t"), found.bytes("t"), memoryview(found)
    part = view[50:]
    found.close()
    found.close()
    assert found.closed
    with pytest.raises(ValueError, match="is closed"):
        found.torch("t")
    with pytest.raises(ValueError, match="is closed"):
        memoryview(found)
    del ticket, found, view
    assert leases(store) == 1
    assert part.tolist() == [7] * 50
    del part
    assert leases(store) == 1
    assert bytes(raw) == b"\7" * 100
    raw.release()
    assert leases(store) == 1
    whole.release()
    del raw, whole
    assert leases(store) == 0
    assert store.keys() == [str(write_model("a", 100))]


def test_the_memory_is_read_only_for_python(store: qml.Store, write_model: WriteModel) -> None:
    with store.load(write_model("a", 100), "a").result() as found:
        assert memoryview(found).readonly
        with pytest.raises(TypeError):
            found.bytes("t")[0] = 1
    with store.get("a", writable=True) as own:
        own.torch("t")[0] = 99
        assert own.torch("t")[0] == 99
        with store.get("a") as shared:
            assert shared.torch("t")[0] == 7


def test_a_ticket_keeps_the_entry_until_it_is_taken(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100), "a")
    wait_until(ticket.done)
    assert leases(store) == 1
    del ticket
    assert leases(store) == 0
    store.load(write_model("b", 100), "b")  # nobody wants the ticket: fetching ahead
    wait_until(lambda: "b" in store)
    wait_until(lambda: leases(store) == 0)
    assert len(store) == 2


def test_the_least_recently_used_goes(store: qml.Store, write_model: WriteModel) -> None:
    for name in "abcd":
        store.load(write_model(name, 3 * MIB), name).result().close()
    store.get("a").close()
    store.pin("b")
    assert store.keys() == ["b", "c", "d", "a"]
    held = store.get("c")
    store.load(write_model("e", 3 * MIB), "e").result().close()
    assert store.keys() == ["b", "a", "c", "e"]
    assert store.stats().evictions == 1
    assert held.torch("t").sum() == 7 * 3 * MIB
    held.close()
    store.unpin("b")
    store.load(write_model("f", 16 * MIB - 4096), "f").result().close()
    assert store.keys() == ["f"]
    stats = store.stats()
    assert (stats.free_bytes, stats.evictions, stats.entries, stats.loads) == (0, 5, 1, 6)


def test_a_load_waits_for_room(store: qml.Store, write_model: WriteModel) -> None:
    held = store.load(write_model("a", 15 * MIB), "a").result()
    waiting = store.load(write_model("b", 15 * MIB), "b")
    behind = store.load(write_model("c", 100), "c")  # there would be no room for it either
    wait_until(lambda: waiting.progress.stage == "waiting")
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.05)
    assert not waiting.done()
    held.close()
    assert waiting.result(10).bytes("t")[0] == 7
    waiting.result().close()
    behind.result(10).close()


def test_a_deadline_ends_the_wait_for_room(store: qml.Store, write_model: WriteModel) -> None:
    held = store.load(write_model("a", 15 * MIB), "a").result()
    late = store.load(write_model("b", 15 * MIB), "b", deadline=0.05)
    error = late.exception(10)
    assert isinstance(error, qml.DeadlineError)
    assert isinstance(error, TimeoutError)
    assert "0.050 seconds" in str(error)
    wait_until(lambda: store.stats().pending_loads == 0)
    assert held.torch("t")[0] == 7


def test_cancel(store: qml.Store, write_model: WriteModel) -> None:
    held = store.load(write_model("a", 15 * MIB), "a").result()
    path = write_model("b", 15 * MIB)
    first, second = store.load(path, "b"), store.load(path, "b")
    assert first.cancel()
    assert first.cancel()
    assert first.cancelled()
    with pytest.raises(qml.CancelledError):
        first.result()
    held.close()
    found = second.result(10)  # the load went on for who still waited
    assert not second.cancel()
    assert not second.cancelled()
    found.close()
    held = store.get("b")
    third = store.load(write_model("c", 15 * MIB), "c")
    assert third.cancel()
    wait_until(lambda: store.stats().pending_loads == 0)
    assert "c" not in store
    held.close()


def test_cancel_while_reading(tmp_path: Path) -> None:
    size = 512 * MIB
    header = b'{"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    with qml.Store(size + MIB, prefault=False, threads=1) as store:
        ticket = store.load(path)
        wait_until(lambda: ticket.progress.stage == "reading" or ticket.done())
        assert ticket.cancel()
        wait_until(lambda: store.stats().free_bytes == store.stats().capacity_bytes)
        assert (store.stats().failed_loads, len(store)) == (1, 0)


def test_a_model_that_does_not_fit_at_all(store: qml.Store, write_model: WriteModel) -> None:
    path = write_model("a", 17 * MIB)
    store.load(write_model("b", 100), "b").result().close()
    with pytest.raises(qml.CapacityError, match="bytes of memory are needed, 16777216 were given") as caught:
        store.load(path).result(10)
    assert caught.value.path == path
    assert store.keys() == ["b"]


def test_what_is_there_is_not_loaded_again(store: qml.Store, write_model: WriteModel) -> None:
    path = write_model("a", 100)
    first = store.load(path, "a").result()
    again = store.load(path, "a")
    assert again.done()
    assert again.result().address == first.address
    assert (store.stats().hits, store.stats().loads) == (1, 1)
    assert again.progress.bytes == again.progress.total_bytes == path.stat().st_size
    with pytest.raises(qml.KeyInUseError, match=str(path)):
        store.load(write_model("b", 100), "a")


def test_files_that_changed_are_loaded_again(store: qml.Store, write_model: WriteModel) -> None:
    path = write_model("a", 100, 1)
    old = store.load(path, "a").result()
    store.pin("a")
    path.unlink()
    write_model("a", 200, 2)
    new = store.load(path, "a").result()
    assert (len(old.bytes("t")), old.bytes("t")[0]) == (100, 1)
    assert (len(new.bytes("t")), new.bytes("t")[0]) == (200, 2)
    assert store.keys() == ["a"]
    with pytest.raises(qml.PinnedError, match="unpin it first"):
        store.evict("a")
    old.close()
    del old
    wait_until(lambda: store.stats().free_bytes == 7 * SMALL_CHUNK_BYTES)


def test_evict(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 100), "a").result()
    assert not store.evict("a")
    assert "a" not in store
    assert found.bytes("t")[0] == 7
    for call in (store.evict, store.get, store.pin, store.unpin):
        with pytest.raises(KeyError):
            call("a")
    assert store.stats().free_bytes == 7 * SMALL_CHUNK_BYTES
    found.close()
    assert store.stats().free_bytes == 8 * SMALL_CHUNK_BYTES
    store.load(write_model("a", 100), "a").result().close()
    assert store.evict("a")


def test_callbacks_and_descriptors(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100), "a")
    called: list[tuple[qml.Ticket, str]] = []
    happened = threading.Event()

    def callback(done: qml.Ticket) -> None:
        called.append((done, done.result().key))
        happened.set()

    ticket.add_done_callback(callback)
    assert select.select([ticket], [], [], 10)[0] == [ticket]
    assert ticket.fileno() == ticket.fileno()
    assert happened.wait(10)
    ticket.add_done_callback(callback)
    assert called == [(ticket, "a")] * 2
    late = store.load(Path("/nowhere"))
    assert select.select([late], [], [], 10)[0] == [late]
    assert isinstance(late.exception(), qml.IoError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_that_fails_harms_nobody(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100), "a")
    ticket.add_done_callback(lambda _: 1 / 0)
    assert ticket.result().key == "a"
    assert store.load(write_model("b", 100), "b").result().key == "b"


def test_close_ends_loads_but_not_views(write_model: WriteModel) -> None:
    store = qml.Store(8 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES)
    found = store.load(write_model("a", 15 * MIB), "a").result()
    waiting = store.load(write_model("b", 15 * MIB), "b")
    store.close()
    assert isinstance(waiting.exception(), qml.ClosedError)
    with pytest.raises(qml.ClosedError):
        store.load(write_model("c", 100))
    with pytest.raises(qml.ClosedError):
        found.handle()
    view = found.torch("t")
    del store, found
    gc.collect()
    assert view.sum() == 7 * 15 * MIB


def test_a_store_that_is_dropped_leaves_no_thread(write_model: WriteModel) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    store = qml.Store(8 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES)
    store.load(write_model("a", 100), "a").result().handle()
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    wait_until(lambda: threads() <= before)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"capacity": 0}, ValueError, "at least 1 byte"),
        ({"capacity": -1}, OverflowError, "negative"),
        ({"capacity": 1 << 60}, qml.CapacityError, "bytes of memory are needed"),
        ({"capacity": 1, "chunk_bytes": 4096}, ValueError, "multiple of 2097152"),
        ({"capacity": 1, "threads": 0}, ValueError, "threads"),
    ],
)
def test_wrong_arguments(arguments: dict[str, int], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        qml.Store(**arguments)  # type: ignore[arg-type]


def test_wrong_times(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100))
    ticket.result()
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="no number of seconds"):
            store.load(write_model("b", 100), deadline=seconds)
    waiting = store.load(Path("/nowhere"))
    with pytest.raises(qml.IoError):
        waiting.result(float("inf"))


def test_small_pages_are_told(write_model: WriteModel) -> None:
    with qml.Store(SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES, huge_pages=False) as store:
        wait_until(lambda: store.stats().prepared_bytes == SMALL_CHUNK_BYTES)
        assert (store.stats().pages, store.stats().huge_bytes) == ("small", 0)
        assert store.load(write_model("a", 100)).result().bytes("t")[0] == 7
    with qml.Store(SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES) as store:
        wait_until(lambda: store.stats().prepared_bytes == SMALL_CHUNK_BYTES)
        assert (store.stats().huge_bytes == 0) == (store.stats().pages == "small")


def test_pages_come_when_they_are_needed(write_model: WriteModel) -> None:
    with qml.Store(4 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES, prefault=False) as store:
        assert store.stats().prepared_bytes == 0
        store.load(write_model("a", 3 * MIB)).result()
        assert store.stats().prepared_bytes == 2 * SMALL_CHUNK_BYTES


def test_chunks_need_not_be_neighbours(store: qml.Store, write_model: WriteModel) -> None:
    for name in "abcdefgh":
        store.load(write_model(name, MIB), name).result().close()
    for name in "aceg":
        store.evict(name)
    content = os.urandom(8 * MIB - 4096)
    path = write_model("big", len(content))
    head = path.read_bytes()[: -len(content)]
    path.write_bytes(head + content)
    found = store.load(path).result()
    assert bytes(found.bytes("t")) == content
    for name in "bdfh":
        assert set(bytes(store.get(name).bytes("t"))) == {7}


def test_many_loads_at_once(store: qml.Store, tmp_path: Path, write_model: WriteModel) -> None:
    paths = {name: write_model(name, MIB + number, number) for number, name in enumerate("abcdefghijkl")}
    mistakes: list[str] = []

    def work(seed: int) -> None:
        for number in range(30):
            name = "abcdefghijkl"[(number * (seed + 1) + seed) % 12]
            with store.load(paths[name], name).result(30) as found:
                content = bytes(found.bytes("t"))
                if content != bytes(["abcdefghijkl".index(name)]) * len(content):
                    mistakes.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mistakes == []
    assert leases(store) == 0
    stats = store.stats()
    assert (stats.pending_loads, stats.failed_loads) == (0, 0)
    assert stats.free_bytes + stats.entries * SMALL_CHUNK_BYTES == stats.capacity_bytes


def test_python_goes_on_while_waiting(store: qml.Store, write_model: WriteModel) -> None:
    held = store.load(write_model("a", 15 * MIB), "a").result()
    waiting = store.load(write_model("b", 15 * MIB), "b")
    timer = threading.Timer(0.05, held.close)
    timer.start()
    start = time.monotonic()
    waiting.result(20)  # would never come if the timer's thread could not run
    assert time.monotonic() - start < 20
    timer.join()


def test_texts(store: qml.Store, write_model: WriteModel) -> None:
    ticket = store.load(write_model("a", 100), "a")
    found = ticket.result()
    assert repr(ticket).startswith('Ticket(key="a", stage=done')
    assert repr(found) == 'Entry(key="a", nbytes=4096)'
    assert repr(store) == "Store(capacity_bytes=16777216, entries=1)"
    assert "capacity_bytes=16777216" in repr(store.stats())
    assert repr(ticket.progress).startswith('Progress(stage="done"')
