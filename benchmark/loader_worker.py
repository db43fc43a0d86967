"""Measures what it is told to, one line of JSON in and one out: the part of ``loader.py`` that runs among the peers.

    python loader_worker.py FOLDER LIBRARY

Does not know what the figures should be, nor how often they are asked for.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loader_methods as methods
import torch
from loader_model import write_model, write_small_models
from safetensors.torch import load_file

import quick_model_loader as qml

LAYERS = 27
SMALL_MODELS = 200
SMALL_BYTES = 10_000_000
CONCURRENT = 8
PAGE_BYTES = 4096
Answer = dict[str, Any]

READER = """
import pickle, sys, time
import torch
import quick_model_loader as qml
for line in sys.stdin:
    handle, name = pickle.loads(bytes.fromhex(line))
    start = time.perf_counter()
    entry = qml.attach(handle)
    tensor = entry.torch(name)
    tensor.view(-1)[0].item()
    print(time.perf_counter() - start, flush=True)
    del entry, tensor
"""


class Worker:
    """Models, memory and methods."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.small = folder / "small"
        write_model(self.model, LAYERS)
        write_small_models(self.small, SMALL_MODELS, SMALL_BYTES)
        self.checkpoint = qml.inspect(self.model)
        self.files = [file.path for file in self.checkpoint.files]
        self.tensorizer_file = folder / "model.tensors"
        self.copier = methods.Copier(library)
        self.memory = methods.Memory(self.checkpoint.buffer_bytes)
        self.store = new_store(self.checkpoint.buffer_bytes)
        self.checkpoint.write_checksums()
        files, memory, copier = self.files, self.memory, self.copier
        self.methods: dict[str, Callable[[], object]] = {
            "quick_model_loader": self.load,
            "quick_model_loader, verified": lambda: self.load(verify=True),
            "pread, 1 thread": lambda: methods.pread(files, memory, 1),
            "pread, 4 threads": lambda: methods.pread(files, memory, 4),
            "original": lambda: methods.original(files, memory),
            "safetensors get_tensor": lambda: methods.get_tensor(files, memory),
            "safetensors load_file + clone": lambda: methods.load_and_clone(files),
            "transformers from_pretrained": lambda: methods.from_pretrained(self.model),
            "fastsafetensors": lambda: methods.fastsafetensors(files, 16),
            "runai-model-streamer": lambda: methods.runai(files),
            "tensorizer": lambda: methods.tensorizer(self.tensorizer_file),
            "non-temporal copy, 1 thread": lambda: self.copy_limit(copier, "copy_non_temporal", 1),
            "non-temporal copy, 2 threads": lambda: self.copy_limit(copier, "copy_non_temporal", 2),
            "memcpy, 2 threads": lambda: self.copy_limit(copier, "copy_plain", 2),
            "arena to memory": self.copy_out,
        }
        self.held: qml.Entry | None = None

    def load(self, verify: bool = False) -> object:
        """Load the model into the store, as a user would."""
        return self.store.load(self.model, "model", verify=verify).result()

    def copy_limit(self, copier: methods.Copier, function: str, threads: int) -> None:
        """From the arena to memory, as fast as memory allows."""
        assert self.held is not None
        copier.copy(function, self.memory.address, self.held.address, self.checkpoint.total_bytes, threads)

    def copy_out(self) -> None:
        """Every tensor from the arena to where it belongs in the caller's memory."""
        assert self.held is not None
        placements, place = [], self.memory.address
        for name, info in self.held.tensors.items():
            placements.append(qml.Placement(name, place, info.nbytes))
            place += -(-info.nbytes // 64) * 64
        self.held.plan(placements).copy()

    def run(self, method: str, cold: bool) -> Answer:
        """One measurement."""
        from_arena = "copy" in method or method.startswith(("memcpy", "arena"))
        if from_arena:
            self.held = self.store.load(self.model, "model").result()
        elif "model" in self.store:
            self.store.evict("model")
        files = [self.tensorizer_file] if method == "tensorizer" else self.files
        if method == "tensorizer":
            methods.write_tensorizer(self.files, self.tensorizer_file)
        cached = prepare(files, cold)
        before_s = cpu_s()
        start_s = time.perf_counter()
        result = self.methods[method]()
        seconds = time.perf_counter() - start_s
        answer = {
            "seconds": seconds,
            "cpu_s": cpu_s() - before_s,
            "bytes": self.checkpoint.total_bytes,
            "cached_before": cached,
        }
        if isinstance(result, qml.Entry) and result.report is not None:
            answer["direct_bytes"] = result.report.direct_bytes
            result.close()
        del result
        if self.held is not None:
            self.held.close()
            self.held = None
        gc.collect()
        return answer

    def small_models(self, method: str) -> Answer:
        """All small models, from the page cache: one after the other with safetensors, or through a store."""
        paths = [self.small / f"{number:03}" for number in range(SMALL_MODELS)]
        prepare([path / "model.safetensors" for path in paths], cold=False)
        if method == "safetensors":
            start_s = time.perf_counter()
            models = [{n: t.clone() for n, t in load_file(path / "model.safetensors").items()} for path in paths]
            seconds = time.perf_counter() - start_s
            del models
        else:
            with new_store(SMALL_MODELS * (SMALL_BYTES + (3 << 20)), chunk_bytes=2 << 20) as store:
                start_s = time.perf_counter()
                entries = [ticket.result() for ticket in [store.load(path) for path in paths]]
                for entry in entries:
                    entry.torch("layer.0")
                seconds = time.perf_counter() - start_s
                del entries, entry
        gc.collect()
        return {"seconds": seconds, "bytes": SMALL_MODELS * SMALL_BYTES}

    def concurrent(self, at_once: bool) -> Answer:
        """Eight cold loads: all asked for at once, or each after the one before."""
        numbers = range(CONCURRENT * 20)
        paths = [self.small / f"{number:03}" for number in numbers]
        groups = [self._gather(group, paths[group * 20 : group * 20 + 20]) for group in range(CONCURRENT)]
        prepare([path for group in groups for path in group.glob("*.safetensors")], cold=True)
        self.store.evict("model") if "model" in self.store else None
        start_s = time.perf_counter()
        if at_once:
            for ticket in [self.store.load(group, group.name) for group in groups]:
                ticket.result().close()
        else:
            for group in groups:
                self.store.load(group, group.name).result().close()
        seconds = time.perf_counter() - start_s
        for group in groups:
            self.store.evict(group.name)
        return {"seconds": seconds, "bytes": CONCURRENT * 20 * SMALL_BYTES}

    def _gather(self, group: int, models: list[Path]) -> Path:
        """A checkpoint of 200 MB whose shards are small models with names of their own."""
        folder = self.folder / "groups" / str(group)
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for number, model in enumerate(models):
                content = (model / "model.safetensors").read_bytes()
                renamed = content.replace(b'"layer.', f'"{number:03}_r.'.encode())
                (folder / f"{number:03}.safetensors").write_bytes(renamed)
            (folder / "done").touch()
        return folder

    def attach(self, count: int) -> Answer:
        """Seconds from a handle to the first element of a tensor, in a process that has the modules imported."""
        with self.store.load(self.model, "model").result() as entry:
            line = pickle.dumps((entry.handle(), next(iter(entry.tensors)))).hex()
            pipe = subprocess.PIPE
            with subprocess.Popen([sys.executable, "-c", READER], stdin=pipe, stdout=pipe, text=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                seconds = []
                for _ in range(count):
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
                    seconds.append(float(process.stdout.readline()))
                process.stdin.close()
        return {"first": seconds[0], "median": statistics.median(seconds), "worst": max(seconds[1:])}

    def gil(self) -> Answer:
        """How fast a Python thread counts while a cold load goes on, compared with before and after."""
        prepare(self.files, cold=True)
        if "model" in self.store:
            self.store.evict("model")
        alone = [count_for(0.3)]
        ticket = self.store.load(self.model, "model")
        during = count_for(0.3)
        still_loading = not ticket.done()
        ticket.result().close()
        alone.append(count_for(0.3))
        return {"share": during / statistics.mean(alone), "still_loading": still_loading}

    def aged(self, cold: bool) -> Answer:
        """Load into chunks that lie scattered, as in an arena that has been in use for long."""
        with new_store(2 * self.checkpoint.buffer_bytes // (16 << 20) * (16 << 20), chunk_bytes=16 << 20) as store:
            keys = []
            while store.stats().free_bytes:
                path = self.small / f"{len(keys) % SMALL_MODELS:03}"
                keys.append(f"{len(keys)}")
                store.load(path, keys[-1]).result().close()
            for key in keys[::2]:
                store.evict(key)
            for key in keys[1::2]:
                store.pin(key)
            prepare(self.files, cold)
            start_s = time.perf_counter()
            entry = store.load(self.model, "model").result()
            seconds = time.perf_counter() - start_s
            entry.close()
        return {"seconds": seconds, "bytes": self.checkpoint.total_bytes}

    def fragmented(self, ballast_bytes: int) -> Answer:
        """Cold loads of a third of the model into new stores, with the machine's free memory in pieces and without."""
        shard = self.files[0]
        answer: Answer = {}
        self.store.close()
        del self.store, self.memory
        gc.collect()
        for name in ("fresh", "fragmented"):
            ballast = in_pieces(ballast_bytes) if name == "fragmented" else None
            start_s = time.perf_counter()
            with new_store(shard.stat().st_size) as store:
                answer[name + "_prefault_s"] = time.perf_counter() - start_s
                speeds = []
                for _ in range(5):
                    prepare([shard], cold=True)
                    start_s = time.perf_counter()
                    store.load(shard, "shard").result().close()
                    speeds.append(shard.stat().st_size / (time.perf_counter() - start_s))
                    store.evict("shard")
                stats = store.stats()
                answer[name] = statistics.median(speeds)
                answer[name + "_huge"] = stats.huge_bytes / stats.prepared_bytes
            if ballast is not None:
                libc().munmap(*ballast)
        return answer


def in_pieces(nbytes: int) -> tuple[int, int]:
    """Memory of which every second page is given back: what is free then lies in single pages."""
    address = libc().mmap(None, nbytes, 3, 0x22, -1, 0)
    libc().madvise(address, nbytes, 15)  # no huge pages
    torch.frombuffer((methods.ctypes.c_char * nbytes).from_address(address), dtype=torch.uint8).fill_(1)
    for place in range(0, nbytes, 2 * PAGE_BYTES):
        libc().madvise(address + place, PAGE_BYTES, 4)
    return address, nbytes


def libc() -> Any:
    """The C library, with the types of what is called here."""
    library = methods.ctypes.CDLL(None, use_errno=True)
    pointer, size, number = methods.ctypes.c_void_p, methods.ctypes.c_size_t, methods.ctypes.c_int
    library.mmap.argtypes, library.mmap.restype = (pointer, size, number, number, number, size), pointer
    library.madvise.argtypes = (pointer, size, number)
    library.munmap.argtypes = (pointer, size)
    return library


def new_store(capacity_bytes: int, **options: int) -> qml.Store:
    """A store whose pages are all there."""
    store = qml.Store(capacity_bytes, **options)  # type: ignore[arg-type]
    while store.stats().prepared_bytes < store.stats().capacity_bytes:
        time.sleep(0.01)
    return store


def prepare(files: list[Path], cold: bool) -> float:
    """Bring the files into the page cache, or out of it; returns the share of their pages that is in it."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            if cold:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 22):
                    pass
    return statistics.mean(cached_share(path) for path in files)


def cached_share(path: Path) -> float:
    """The share of a file's pages that is in the page cache, by mincore(2)."""
    library, size = libc(), path.stat().st_size
    with path.open("rb") as file:
        address = library.mmap(None, size, 1, 1, file.fileno(), 0)
    pages = (methods.ctypes.c_ubyte * (-(-size // PAGE_BYTES)))()
    library.mincore(methods.ctypes.c_void_p(address), methods.ctypes.c_size_t(size), pages)
    library.munmap(address, size)
    return sum(page & 1 for page in bytes(pages)) / len(pages)


def cpu_s() -> float:
    """Processor time of this process so far, the kernel's on its behalf included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def count_for(seconds: float) -> float:
    """How far a thread counts per second of its own waking time."""
    result: list[float] = []

    def count() -> None:
        number, end = 0, time.perf_counter() + seconds
        start = time.perf_counter()
        while time.perf_counter() < end:
            number += 1
        result.append(number / (time.perf_counter() - start))

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    return result[0]


def main(folder: str, library: str) -> None:
    """Answer until there are no more questions."""
    torch.set_num_threads(2)
    worker = Worker(Path(folder), Path(library))
    answers: dict[str, Callable[..., Answer]] = {
        name: getattr(worker, name)
        for name in ("run", "small_models", "concurrent", "attach", "gil", "aged", "fragmented")
    }
    versions = {"model_bytes": worker.checkpoint.total_bytes, "pages": worker.store.stats().pages}
    print(json.dumps(versions | {"tensors": len(worker.checkpoint.tensors)}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = answers[question.pop("do")](**question)
        except Exception as error:  # noqa: BLE001 (a peer may fail of anything, and the benchmark says so)
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # What peers print must not get between the answers.
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers_fd, "w")
    main(*sys.argv[1:])
