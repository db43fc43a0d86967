"""Bytes arrive verbatim, without the GIL, and never after a failure as if nothing had happened."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quick_model_loader as qml

from .conftest import WriteFile, entry

MIB = 1 << 20


def padded(paths: list[Path]) -> bytes:
    """The files as the buffer should hold them."""
    blocks = []
    for path in paths:
        content = path.read_bytes()
        blocks.append(content + bytes(-len(content) % qml.BLOCK_BYTES))
    return b"".join(blocks)


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def shards(write_file: WriteFile) -> list[Path]:
    """Three files: of several jobs, of less than a block, of whole blocks."""
    sizes = [17 * MIB + 123, 5, 2 * MIB]
    paths = []
    for number, size in enumerate(sizes):
        header = {f"t{number}": entry("U8", [size], 0, size)}
        paths.append(write_file(f"{number}.safetensors", header, os.urandom(size)))
    return paths


@pytest.mark.parametrize("direct", [None, True, False])
@pytest.mark.parametrize("threads", [None, 1, 7])
def test_files_arrive_verbatim(shards: list[Path], direct: bool | None, threads: int | None) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    memory = mmap.mmap(-1, checkpoint.buffer_bytes)
    memory[:] = b"\xaa" * len(memory)
    report = checkpoint.read_into_buffer(memory, threads=threads, direct=direct)
    assert memory[:] == padded(shards)
    assert report.bytes == checkpoint.total_bytes == report.direct_bytes + report.buffered_bytes
    assert report.seconds > 0
    assert 1 <= report.threads <= (threads or 16)
    if direct is False:
        assert report.direct_bytes == 0


def test_what_is_cached_is_copied_and_the_rest_comes_from_the_disk(shards: list[Path]) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    memory = mmap.mmap(-1, checkpoint.buffer_bytes)
    assert checkpoint.read_into_buffer(memory).direct_bytes == 0
    drop_from_page_cache(shards[0])
    cold = checkpoint.read_into_buffer(memory)
    if checkpoint.read_into_buffer(memory, direct=True).direct_bytes == 0:
        pytest.skip("this file system has no direct I/O")
    assert cold.direct_bytes == shards[0].stat().st_size
    assert memory[:] == padded(shards)


def test_an_address_need_not_be_aligned(shards: list[Path]) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    memory = mmap.mmap(-1, checkpoint.buffer_bytes + 1)
    view = ctypes.c_char.from_buffer(memory)
    report = checkpoint.read_into(ctypes.addressof(view) + 1, checkpoint.buffer_bytes, direct=True)
    del view
    assert report.direct_bytes == 0
    assert memory[1:] == padded(shards)
    assert memory[0] == 0


def test_a_file_system_without_disk(shards: list[Path]) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs")
    path = Path(f"/dev/shm/quick_model_loader_test_{os.getpid()}.safetensors")
    path.write_bytes(shards[0].read_bytes())
    try:
        checkpoint = qml.inspect(path)
        memory = bytearray(checkpoint.buffer_bytes)
        for direct in (None, True, False):
            checkpoint.read_into_buffer(memory, direct=direct)
            assert memory == padded([path])
    finally:
        path.unlink()


def test_tensors_equal_those_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool, torch.float8_e5m2]
    save_file({str(dtype): torch.randn(33, 5).to(dtype) for dtype in dtypes}, path)
    checkpoint = qml.inspect(path)
    memory = torch.empty(checkpoint.buffer_bytes, dtype=torch.uint8)
    checkpoint.read_into(memory.data_ptr(), memory.nbytes)
    for name, expected in load_file(path).items():
        info = checkpoint.tensors[name]
        data = memory[info.begin : info.end].view(expected.dtype).view(info.shape)
        assert torch.equal(data.view(torch.uint8), expected.view(torch.uint8))


def test_too_little_memory(shards: list[Path]) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    memory = bytearray(checkpoint.buffer_bytes - 1)
    with pytest.raises(qml.CapacityError, match=f"{checkpoint.buffer_bytes} bytes of memory are needed") as caught:
        checkpoint.read_into_buffer(memory)
    assert caught.value.path == checkpoint.path
    assert not any(memory[:MIB])


def test_wrong_arguments(shards: list[Path]) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    size = checkpoint.buffer_bytes
    with pytest.raises(ValueError, match="address"):
        checkpoint.read_into(0, size)
    with pytest.raises(OverflowError):
        checkpoint.read_into(-4096, size)
    with pytest.raises(ValueError, match="threads"):
        checkpoint.read_into_buffer(bytearray(size), threads=0)
    with pytest.raises(BufferError):
        checkpoint.read_into_buffer(bytes(size))
    with pytest.raises(BufferError):
        checkpoint.read_into_buffer(memoryview(bytearray(2 * size))[::2])
    with pytest.raises(TypeError):
        checkpoint.read_into_buffer(7)  # type: ignore[arg-type]


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (replace, qml.ChangedError, "replaced"),
        (append, qml.ChangedError, "modified"),
        (lambda path: os.truncate(path, 100), qml.ChangedError, "modified"),
        (Path.unlink, qml.IoError, "cannot open"),
    ],
)
def test_files_that_change_between_inspection_and_load(
    shards: list[Path], change: Callable[[Path], None], exception: type[qml.LoaderError], message: str
) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    change(shards[2])
    with pytest.raises(exception, match=message) as caught:
        checkpoint.read_into_buffer(mmap.mmap(-1, checkpoint.buffer_bytes))
    assert caught.value.path == shards[2]


def big(directory: Path) -> qml.Checkpoint:
    """A sparse model that takes long enough to load for something to happen meanwhile."""
    size = 256 * MIB
    header = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    path = directory / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return qml.inspect(path)


def load_forever(checkpoint: qml.Checkpoint, cancel: qml.CancelToken | None = None) -> None:
    """Load again and again: only an error ends it."""
    memory = mmap.mmap(-1, checkpoint.buffer_bytes)
    while True:
        checkpoint.read_into_buffer(memory, threads=1, cancel=cancel)


def test_cancel_from_another_thread(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    token = qml.CancelToken()
    assert not token.cancelled
    timer = threading.Timer(0.02, token.cancel)
    timer.start()
    with pytest.raises(qml.CancelledError):
        load_forever(checkpoint, token)
    timer.join()
    assert token.cancelled
    assert repr(token) == "CancelToken(cancelled=True)"


def test_truncation_while_loading(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    path = checkpoint.files[0].path
    timer = threading.Timer(0.02, os.truncate, (path, 4096))
    timer.start()
    with pytest.raises((qml.TruncatedError, qml.ChangedError)) as caught:
        load_forever(checkpoint)
    timer.join()
    assert caught.value.path == path


def test_other_python_threads_run_meanwhile(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    memory = mmap.mmap(-1, checkpoint.buffer_bytes)
    stop = threading.Event()
    longest_s = 0.0

    def tick() -> None:
        nonlocal longest_s
        while not stop.is_set():
            start = time.perf_counter()
            time.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - start)

    thread = threading.Thread(target=tick)
    thread.start()
    report = checkpoint.read_into_buffer(memory, threads=1)
    stop.set()
    thread.join()
    assert longest_s < max(report.seconds / 2, 0.1)


def test_interrupt(tmp_path: Path) -> None:
    checkpoint = big(tmp_path)
    program = """
import mmap, sys, quick_model_loader as qml
checkpoint = qml.inspect(sys.argv[1])
memory = mmap.mmap(-1, checkpoint.buffer_bytes)
try:
    print("ready", flush=True)
    while True:
        checkpoint.read_into_buffer(memory, threads=1)
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", program, str(checkpoint.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert output == "interrupted\n"
    assert process.returncode == 0


def test_loads_side_by_side(shards: list[Path]) -> None:
    checkpoint = qml.inspect(shards[0].parent)
    expected = padded(shards)
    results: list[bool] = []

    def load() -> None:
        memory = bytearray(checkpoint.buffer_bytes)
        checkpoint.read_into_buffer(memory)
        results.append(memory == expected)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
