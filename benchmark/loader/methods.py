"""The ways to get a model's tensors into memory that the loader is compared with.

Runs in the benchmark's own environment. Each method is a callable that loads once; what it loads is dropped outside
the measurement.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import quick_model_loader as qml

MADV_HUGEPAGE = 14
HUGE_PAGE_BYTES = 2 << 20
JOB_BYTES = 8 << 20


class Memory:
    """A prefaulted target of huge pages, for those who copy into memory that is there already."""

    def __init__(self, nbytes: int) -> None:
        self._map = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE_PAGE_BYTES
        self.tensor = whole[start : start + nbytes]
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if madvise(self.tensor.data_ptr(), nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, MADV_HUGEPAGE):
            raise OSError(ctypes.get_errno(), "no huge pages")
        self.tensor.fill_(1)

    @property
    def address(self) -> int:
        """The address at which it begins."""
        return self.tensor.data_ptr()


class Copier:
    """Copies memory on a number of threads, through a function of the C library beside this file."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("copy_non_temporal", "copy_plain"):
            getattr(self._library, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def copy(self, function: str, target: int, source: int, nbytes: int, threads: int) -> None:
        """Each thread copies one part; sizes are cut to multiples of 4096."""
        part = nbytes // threads // 4096 * 4096
        call = getattr(self._library, function)
        in_parallel([partial(call, target + n * part, source + n * part, part) for n in range(threads)])


def in_parallel(works: Sequence[Callable[[], object]]) -> None:
    """Do all of it, the first one on this thread."""
    threads = [threading.Thread(target=work) for work in works[1:]]
    for thread in threads:
        thread.start()
    works[0]()
    for thread in threads:
        thread.join()


def pread(files: Sequence[Path], memory: Memory, threads: int) -> None:
    """Plain buffered reads of jobs as large as the loader's."""
    view = memoryview(memory.tensor.numpy())  # type: ignore[arg-type]  # numpy says so from Python 3.12 on
    opened = [path.open("rb", buffering=0) for path in files]
    jobs = _jobs(opened)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            file, offset, place, nbytes = job
            while nbytes:
                count = os.preadv(file.fileno(), [view[place : place + nbytes]], offset)
                offset, place, nbytes = offset + count, place + count, nbytes - count

    in_parallel([work] * threads)
    for file in opened:
        file.close()


def _jobs(files: Sequence[BinaryIO]) -> Iterator[tuple[BinaryIO, int, int, int]]:
    place = 0
    for file in files:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, JOB_BYTES):
            nbytes = min(JOB_BYTES, size - offset)
            yield file, offset, place, nbytes
            place += nbytes


def original(files: Sequence[Path], memory: Memory) -> None:
    """The original artifact's way: map each file, and copy tensor after tensor into memory that is there."""
    place = 0
    for path in files:
        checkpoint = qml.inspect(path)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        whole = torch.frombuffer(mapped, dtype=torch.uint8)
        for info in checkpoint.tensors.values():
            memory.tensor[place : place + info.nbytes].copy_(whole[info.begin : info.end])
            place += info.nbytes


def get_tensor(files: Sequence[Path], memory: Memory) -> None:
    """safetensors, one tensor at a time, copied into memory that is there."""
    place = 0
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                tensor = file.get_tensor(name).view(torch.uint8).view(-1)
                memory.tensor[place : place + tensor.nbytes].copy_(tensor)
                place += tensor.nbytes


def load_and_clone(files: Sequence[Path]) -> object:
    """safetensors' load_file, cloned so that the bytes are in memory of our own."""
    return [{name: tensor.clone() for name, tensor in load_file(path).items()} for path in files]


def from_pretrained(folder: Path) -> object:
    """Transformers; the parameters stay mapped from disk."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def fastsafetensors(files: Sequence[Path], threads: int) -> object:
    """fastsafetensors without GPUDirect; what it returns must be closed, or its memory stays."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), torch.device("cpu"), max_threads=threads, nogds=True)
    result = ExitStack()
    result.callback(loader.close)
    loader.add_filenames({0: [str(path) for path in files]})
    buffers = loader.copy_files_to_device()
    result.callback(buffers.close)
    for name in buffers.key_to_rank_lidx:
        buffers.get_tensor(name)
    return result


def runai(files: Sequence[Path]) -> object:
    """The Run:ai streamer; tensors as they come."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in files])
        return sum(tensor.nbytes for _, tensor in streamer.get_tensors())


def write_tensorizer(files: Sequence[Path], path: Path) -> None:
    """The same tensors in tensorizer's format."""
    from tensorizer import TensorSerializer

    if path.exists():
        return
    partial = path.with_suffix(".partial")
    serializer = TensorSerializer(str(partial))
    serializer.write_state_dict({name: t for file in files for name, t in load_file(file).items()})
    serializer.close()
    partial.rename(path)


def tensorizer(path: Path) -> object:
    """tensorizer, on its own format."""
    from tensorizer import TensorDeserializer

    with TensorDeserializer(str(path), device="cpu") as tensors:
        return dict(tensors.items())
