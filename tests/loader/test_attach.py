"""One memory, several processes: what readers see, and what is left when somebody is killed."""

import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import quick_model_loader as qml

from .conftest import MIB, SMALL_CHUNK_BYTES, Process, wait_until

WriteModel = Callable[..., Path]

READER = """
import pickle, sys
import quick_model_loader as qml
handle = pickle.loads(bytes.fromhex(sys.argv[1]))
entry = qml.attach(handle)
print(bytes(entry.bytes("t")).count(7), flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""

OWNER = """
import pickle, sys
import quick_model_loader as qml
store = qml.Store(8 << 20, chunk_bytes=2 << 20)
entry = store.load(sys.argv[1], "a").result()
print(pickle.dumps(entry.handle()).hex(), flush=True)
sys.stdin.readline()
"""


def reader(handle: qml.Handle) -> Process:
    return Process(READER, pickle.dumps(handle).hex())


@contextmanager
def owner(path: Path) -> Iterator[tuple[Process, qml.Handle]]:
    with Process(OWNER, str(path)) as process:
        yield process, pickle.loads(bytes.fromhex(process.hear()))


def test_a_handle_is_small_plain_data(store: qml.Store, write_model: WriteModel) -> None:
    handle = store.load(write_model("a", 100), "a").result().handle()
    data = pickle.dumps(handle)
    assert len(data) < 300
    assert pickle.loads(data) == handle
    assert {handle, pickle.loads(data)} == {handle}
    assert handle.key == "a"
    token = handle.__reduce__()[1][1]  # type: ignore[index]
    assert token.hex() not in repr(handle)
    with pytest.raises(ValueError, match="16 bytes"):
        qml.Handle("x", b"short", 1, "a")


def test_another_process_sees_the_same_memory(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 5 * MIB), "a").result()
    with reader(found.handle()) as process:
        assert process.hear() == str(5 * MIB)
        assert store.stats().leases == 2
        process.say("(entry.key, entry.nbytes, entry.report, entry.owner_alive, list(entry.tensors))")
        assert process.hear() == f"('a', {found.nbytes}, None, True, ['t'])"
        process.say("str(entry.path), entry.handle() == handle, entry.files[0].bytes")
        assert process.hear() == str((str(found.path), True, found.files[0].bytes))
        process.say("entry.close()")
        process.hear()
        wait_until(lambda: store.stats().leases == 1)
    found.close()


def test_a_lease_of_another_process_keeps_the_entry(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 15 * MIB), "a").result()
    with reader(found.handle()) as process:
        process.hear()
        process.say("[view := entry.bytes('t'), entry.close()][1]")
        process.hear()
        found.close()
        waiting = store.load(write_model("b", 15 * MIB, 9), "b")
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        process.say("bytes(view).count(7)")
        assert process.hear() == str(15 * MIB)
        process.say("globals().pop('view').release()")
        process.hear()
        waiting.result(10).close()


def test_a_reader_that_is_killed_gives_its_leases_back(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 100), "a").result()
    with reader(found.handle()) as process, reader(found.handle()) as other:
        process.hear()
        other.hear()
        assert store.stats().leases == 3
        process.process.send_signal(signal.SIGKILL)
        wait_until(lambda: store.stats().leases == 2)
        other.say("entry.bytes('t')[0]")
        assert other.hear() == "7"
    wait_until(lambda: store.stats().leases == 1)
    assert store.evict("a") is False
    found.close()
    assert store.stats().free_bytes == store.stats().capacity_bytes


def test_an_owner_that_is_killed_leaves_readers_whole_and_no_file(write_model: WriteModel) -> None:
    shm = Path("/dev/shm")
    before = set(shm.iterdir()) if shm.is_dir() else set()
    with owner(write_model("a", 3 * MIB)) as (process, handle):
        mine = qml.attach(handle)
        with reader(handle) as other:
            other.hear()
            assert mine.owner_alive
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
            wait_until(lambda: not mine.owner_alive)
            assert mine.torch("t").sum() == 7 * 3 * MIB
            other.say("bytes(entry.bytes('t')).count(7), entry.owner_alive")
            assert other.hear() == str((3 * MIB, False))
        with pytest.raises(qml.OwnerGoneError, match="is gone") as caught:
            qml.attach(handle)
        assert isinstance(caught.value, ConnectionError)
        assert str(caught.value.path).startswith("@quick_model_loader.")
    if shm.is_dir():
        assert {path for path in set(shm.iterdir()) - before if "quick" in path.name} == set()


def test_an_owner_that_closes_says_so(store: qml.Store, write_model: WriteModel) -> None:
    handle = store.load(write_model("a", 100), "a").result().handle()
    attached = qml.attach(handle)
    store.close()
    wait_until(lambda: not attached.owner_alive)
    assert attached.bytes("t")[0] == 7
    with pytest.raises(qml.OwnerGoneError):
        qml.attach(handle)


def test_an_owner_that_hangs_is_not_waited_for_ever(write_model: WriteModel) -> None:
    with owner(write_model("a", 100)) as (process, handle):
        process.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.process.pid, os.WSTOPPED | os.WNOWAIT)  # until all of its threads stand still
        with pytest.raises(qml.OwnerGoneError, match="does not answer"):
            qml.attach(handle, timeout=0.05)
        process.process.send_signal(signal.SIGCONT)
        assert qml.attach(handle).bytes("t")[0] == 7


def test_entries_that_are_gone(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 100), "a").result()
    handle = found.handle()
    found.close()
    qml.attach(handle).close()
    wait_until(lambda: store.stats().leases == 0)
    store.evict("a")
    with pytest.raises(qml.EvictedError, match="load it again"):
        qml.attach(handle)
    store.load(write_model("a", 100), "a").result()
    with pytest.raises(qml.EvictedError):
        qml.attach(handle)


def test_strangers_get_nothing(store: qml.Store, write_model: WriteModel) -> None:
    handle = store.load(write_model("a", 100), "a").result().handle()
    name, _, number, key = handle.__reduce__()[1]  # type: ignore[misc]
    with pytest.raises(qml.AttachError, match="not from this store"):
        qml.attach(qml.Handle(name, bytes(16), number, key))
    for message in (b"", b"short", bytes(1000)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(f"\0{name}")
            stranger.send(message)
    assert qml.attach(handle).bytes("t")[0] == 7
    wait_until(lambda: store.stats().leases == 0)


def test_a_writer_has_pages_of_its_own(write_model: WriteModel) -> None:
    with owner(write_model("a", 3 * MIB)) as (_, handle):
        own, shared = qml.attach(handle, writable=True), qml.attach(handle)
        own.torch("t").fill_(1)
        assert own.torch("t").sum() == 3 * MIB
        assert shared.torch("t").sum() == 7 * 3 * MIB


def test_writing_to_shared_memory_is_a_segmentation_fault(write_model: WriteModel) -> None:
    with owner(write_model("a", 100)) as (_, handle), reader(handle) as process:
        process.hear()
        process.say("__import__('ctypes').memset(entry.address + entry.offset('t'), 1, 1)")
        assert process.finish()[0] == -signal.SIGSEGV
        assert qml.attach(handle).bytes("t")[0] == 7


def test_a_forked_child_gives_back_nothing_that_is_not_its_own(store: qml.Store, write_model: WriteModel) -> None:
    found = store.load(write_model("a", 100), "a").result()
    attached = qml.attach(found.handle())
    child = os.fork()
    if child == 0:
        found.close()
        attached.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert store.stats().leases == 2
    attached.close()
    wait_until(lambda: store.stats().leases == 1)
    assert qml.attach(found.handle()).bytes("t")[0] == 7


def test_more_readers_than_descriptors(write_model: WriteModel) -> None:
    program = OWNER.replace("store =", "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))\nstore =")
    with Process(program, str(write_model("a", 100))) as process:
        handle = pickle.loads(bytes.fromhex(process.hear()))
        attached: list[qml.Entry] = []

        def attach_many() -> None:
            for _ in range(64):
                attached.append(qml.attach(handle, timeout=0.2))  # noqa: PERF401

        with pytest.raises(qml.OwnerGoneError, match="does not answer"):
            attach_many()
        assert len(attached) > 10
        for entry in attached:
            assert entry.bytes("t")[0] == 7
            entry.close()
        assert qml.attach(handle).bytes("t")[0] == 7
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 48


def test_a_model_of_many_tensors(tmp_path: Path) -> None:
    count = 20_000
    entries = ",".join(
        f'"layer.{n}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{n},{n + 1}]}}' for n in range(count)
    )
    header = ("{" + entries + "}").encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(n % 251 for n in range(count)))
    with owner(path) as (_, handle):
        attached = qml.attach(handle)
        assert len(attached.tensors) == count
        assert attached.bytes("layer.777.weight")[0] == 777 % 251


def test_paths_need_not_be_text(tmp_path: Path, write_model: WriteModel) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.safetensors"
    write_model("a", 100).rename(os.fsdecode(odd))
    with qml.Store(SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES) as store:
        found = store.load(os.fsdecode(odd)).result()
        assert os.fsencode(qml.attach(found.handle()).path) == odd


def test_interpreters_end_with_everything_open(write_model: WriteModel) -> None:
    program = """
import sys
import quick_model_loader as qml
store = qml.Store(8 << 20, chunk_bytes=2 << 20)
entry = store.load(sys.argv[1]).result()
attached = qml.attach(entry.handle())
view, other = entry.bytes("t"), attached.bytes("t")
waiting = [store.load(sys.argv[1], str(n)) for n in range(50)]
waiting[-1].add_done_callback(lambda ticket: None)
"""
    for _ in range(3):
        command = [sys.executable, "-c", program, str(write_model("a", MIB))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
