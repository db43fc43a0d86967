"""Disks that fail, files that change while they are read: an error with the path, nothing lost, nobody else hurt."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import quick_model_loader as qml

from .conftest import MIB, Compile, Process, wait_until

WriteModel = Callable[..., Path]

PROGRAM = """
import sys
import quick_model_loader as qml
bad, good = sys.argv[1:]
with qml.Store(32 << 20, chunk_bytes=2 << 20) as store:
    other = store.load(good, "good")
    try:
        found = store.load(bad, "bad").result()
        print("loaded", bytes(found.bytes("t")) == open(bad, "rb").read()[-found.tensors["t"].nbytes:])
        found.close()
    except qml.LoaderError as error:
        print(type(error).__name__, error.errno, error.path == __import__("pathlib").Path(bad), error.tensor)
    content = bytes(other.result().bytes("t"))
    print("good", set(content))
    del other
    stats = store.stats()
    kept = sum(-(-store.get(key).nbytes // stats.chunk_bytes) for key in store.keys())
    print("all accounted for", stats.free_bytes == stats.capacity_bytes - kept * stats.chunk_bytes)
"""


def run(program: str, library: Path, fault: str, *arguments: str) -> list[str]:
    env = {**os.environ, "LD_PRELOAD": str(library), "FAULTY_IO": fault}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def library(compile_c: Compile) -> Path:
    return compile_c("faulty_io.c")


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails(library: Path, write_model: WriteModel, skip: int, code: int) -> None:
    bad, good = write_model("bad", 12 * MIB), write_model("good", 5 * MIB, 9)
    output = run(PROGRAM, library, f"pread64:bad.safetensors:{code}:{skip}:0", str(bad), str(good))
    failure, *rest = output
    kind, found, is_path, _ = failure.split()
    assert (kind, found, is_path) == ("IoError", str(code), "True")
    assert rest == ["good {9}", "all accounted for True"]


@pytest.mark.parametrize("what", ["short", "eintr"])
def test_reads_that_are_interrupted_or_short(library: Path, write_model: WriteModel, what: str) -> None:
    bad, good = write_model("bad", 3 * MIB), write_model("good", 5 * MIB, 9)
    output = run(PROGRAM, library, f"pread64:bad.safetensors:{what}:0:0", str(bad), str(good))
    assert output == ["loaded True", "good {9}", "all accounted for True"]


def test_direct_reads_that_are_refused_fall_back(library: Path, write_model: WriteModel) -> None:
    bad, good = write_model("bad", 12 * MIB), write_model("good", 5 * MIB, 9)
    program = PROGRAM.replace("2 << 20)", "2 << 20, direct=True)")
    output = run(program, library, f"pread64:bad.safetensors:{errno.EINVAL}:2:1", str(bad), str(good))
    assert output == ["loaded True", "good {9}", "all accounted for True"]


def test_memory_that_cannot_be_had(library: Path, write_model: WriteModel) -> None:
    path = write_model("a", 100)
    program = """
import sys
import quick_model_loader as qml
with qml.Store(8 << 20, chunk_bytes=2 << 20, prefault=False, huge_pages=False) as store:
    for number in range(2):
        try:
            print(store.load(sys.argv[1]).result().bytes("t")[0])
        except qml.IoError as error:
            print(error.errno, error)
    print(store.stats().free_bytes)
"""
    output = run(program, library, f"madvise:.:{errno.ENOMEM}:0:1", str(path))
    assert output[0].startswith(f"{errno.ENOMEM} memfd:quick_model_loader: cannot populate: ")
    assert output[1:] == ["7", str(6 << 20)]


def test_a_kernel_without_huge_pages(library: Path, write_model: WriteModel) -> None:
    program = """
import sys, warnings
import quick_model_loader as qml
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    store = qml.Store(4 << 20, chunk_bytes=2 << 20, prefault=False)
print(store.stats().pages, [warning.category.__name__ for warning in caught])
"""
    # The first call is the page that the collapse needs, the second the collapse itself.
    output = run(program, library, f"madvise:.:{errno.EINVAL}:1:1", "")
    assert output in (["small ['SmallPagesWarning']"], ["hugetlb []"])


def test_a_full_disk_leaves_the_old_checksums(library: Path, write_model: WriteModel) -> None:
    path = write_model("a", 100)
    qml.inspect(path).write_checksums()
    before = Path(f"{path}.xxh3").read_bytes()
    program = """
import sys
import quick_model_loader as qml
try:
    qml.inspect(sys.argv[1]).write_checksums()
except qml.IoError as error:
    print(error.errno, error.path)
"""
    output = run(program, library, f"write:.xxh3:{errno.ENOSPC}:0:0", str(path))
    assert output == [f"{errno.ENOSPC} {path}.xxh3"]
    assert Path(f"{path}.xxh3").read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def sparse(path: Path, nbytes: int) -> Path:
    header = b'{"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (nbytes, nbytes)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + nbytes)
    return path


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def replace(path: Path) -> None:
    sparse(path.with_suffix(".new"), 1000).replace(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"other weights")


@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
@pytest.mark.parametrize("change", [truncate, replace, overwrite, Path.unlink])
def test_files_that_change_while_they_are_read(
    tmp_path: Path, write_model: WriteModel, change: Callable[[Path], None], cached: bool
) -> None:
    """Cached files of this size are copied from the page cache itself, where truncation could mean ``SIGBUS``."""
    size = 256 * MIB

    def write() -> Path:
        path = sparse(tmp_path / "big.safetensors", size)
        if cached:
            path.read_bytes()
        return path

    path = write()
    with qml.Store(size + 32 * MIB, threads=1, prefault=False) as store:
        for _ in range(20):
            ticket, other = store.load(path, "big"), store.load(write_model("small", 100), "small")
            wait_until(lambda t=ticket: t.progress.stage == "reading" or t.done())  # type: ignore[misc]
            change(path)
            error = ticket.exception(60)
            assert other.result(60).bytes("t")[0] == 7
            if error is not None:
                break
            ticket.result().close()  # it was faster than the change
            store.evict("big")
            write()
        assert isinstance(error, qml.ChangedError | qml.TruncatedError | qml.IoError), error
        assert error.path == path
        assert "big" not in store
        assert store.stats().capacity_bytes - store.stats().free_bytes == store.stats().chunk_bytes


def test_a_store_that_is_killed_while_loading_leaves_nothing(tmp_path: Path) -> None:
    path = sparse(tmp_path / "big.safetensors", 256 * MIB)
    program = """
import sys
import quick_model_loader as qml
store = qml.Store(300 << 20, threads=1, prefault=False)
ticket = store.load(sys.argv[1])
print("loading", flush=True)
ticket.result()
sys.stdin.readline()
"""
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with Process(program, str(path)) as process:
        assert process.hear() == "loading"
        process.process.send_signal(signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
    if Path("/dev/shm").is_dir():
        assert not {left for left in set(Path("/dev/shm").iterdir()) - before if "quick" in left.name}


def test_ctrl_c_while_waiting(tmp_path: Path) -> None:
    program = """
import sys
import quick_model_loader as qml
with qml.Store(4 << 20, chunk_bytes=2 << 20) as store:
    held = store.load(sys.argv[1], "a").result()
    ticket = store.load(sys.argv[1], "b")
    try:
        print("waiting", flush=True)
        ticket.result()
    except KeyboardInterrupt:
        print("interrupted", ticket.done(), flush=True)
"""
    path = sparse(tmp_path / "m.safetensors", 3 * MIB)
    with Process(program, str(path)) as process:
        assert process.hear() == "waiting"
        process.process.send_signal(signal.SIGINT)
        assert process.finish()[:2] == (0, "interrupted False\n")


def test_what_is_wrong_is_the_same_through_a_store(tmp_path: Path, store: qml.Store) -> None:
    path = tmp_path / "m.safetensors"
    for content in (b"", b"\x08" + bytes(7) + b"not json", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(qml.LoaderError) as direct:
            qml.inspect(path)
        with pytest.raises(type(direct.value)) as caught:
            store.load(path).result(10)
        assert (str(caught.value), caught.value.path) == (str(direct.value), path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(qml.NotACheckpointError):
        store.load(path).result(10)
    assert store.stats().failed_loads == 4
