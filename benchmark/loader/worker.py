"""Measures what it is told to, one line of JSON in and one out: the part of ``loader.py`` that runs among the peers.

python loader_worker.py FOLDER LIBRARY PATIENCE_S
"""

from __future__ import annotations

import ctypes
import gc
import importlib
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

import torch
from safetensors.torch import load_file

import quick_model_loader as qml
from benchmark.loader import methods
from benchmark.loader.model import write_model, write_small_models

LAYERS = 27
SMALL_MODELS = 200
SMALL_BYTES = 10_000_000
CONCURRENT = 8
PAGE_BYTES = 4096
QUIET_S, QUIET_SHARE = 0.1, 0.1
MEMORY_NEEDED = 3  # times the model, for what a method allocates and the page cache holds
TENSORIZER_FILE = "model.tensors"
Answer = dict[str, Any]

ALLOCATING = {
    "safetensors load_file + clone": "",
    "transformers from_pretrained": "transformers",
    "fastsafetensors": "fastsafetensors",
    "runai-model-streamer": "runai_model_streamer",
    "tensorizer": "tensorizer",
}
"""Methods that bring memory of their own, and what they import."""
FROM_ARENA = {"non-temporal copy, 1 thread", "non-temporal copy, 2 threads", "memcpy, 2 threads", "arena to memory"}

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


class LoadWatch:
    """Times a block, and tells how many cores other processes kept busy meanwhile (in whole ticks of the kernel)."""

    def __enter__(self) -> LoadWatch:
        self._cpu_s, self._busy_s = cpu_s(), busy_s()
        self._start_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start_s
        self.cpu_s = cpu_s() - self._cpu_s
        self.others = max(0.0, busy_s() - self._busy_s - self.cpu_s) / self.seconds

    def answer(self, nbytes: int) -> Answer:
        """What was measured, of a block that moved so many bytes."""
        return {"seconds": self.seconds, "cpu_s": self.cpu_s, "others": self.others, "bytes": nbytes}


class Worker:
    """Models, memory and methods."""

    def __init__(self, folder: Path, library: Path, patience_s: float) -> None:
        self.folder = folder
        self.patience_s = patience_s
        self.model = folder / "model"
        self.small = folder / "small"
        write_model(self.model, LAYERS)
        write_small_models(self.small, SMALL_MODELS, SMALL_BYTES)
        self.checkpoint = qml.inspect(self.model)
        self.files = [file.path for file in self.checkpoint.files]
        methods.write_tensorizer(self.files, folder / TENSORIZER_FILE)
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
        if method in ALLOCATING:
            return self.run_apart(method, cold)
        if method in FROM_ARENA:
            self.held = self.store.load(self.model, "model").result()
        elif "model" in self.store:
            self.store.evict("model")
        # First the wait: some machines take page caches away that are not used for seconds.
        wait_for_quiet(self.patience_s)
        cached = prepare(self.files, cold)
        with LoadWatch() as watch:
            result = self.methods[method]()
        answer = watch.answer(self.checkpoint.total_bytes) | {"cached_before": cached}
        if isinstance(result, qml.Entry) and result.report is not None:
            answer["direct_bytes"] = result.report.direct_bytes
            result.close()
        del result
        if self.held is not None:
            self.held.close()
            self.held = None
        return answer

    def run_apart(self, method: str, cold: bool) -> Answer:
        """One measurement in a process of its own: some keep their memory, or slow down what comes after them."""
        check_memory(MEMORY_NEEDED * self.checkpoint.total_bytes)
        command = [
            sys.executable,
            "-m",
            "benchmark.loader.worker",
            "--apart",
            str(self.folder),
            method,
            str(int(cold)),
            str(self.patience_s),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return {"error": f"it ended with status {done.returncode}"}
        answer: Answer = json.loads(done.stdout.splitlines()[-1])
        return answer

    def small_models(self, method: str) -> Answer:
        """All small models, from the page cache: one after the other with safetensors, or through a store."""
        paths = [self.small / f"{number:03}" for number in range(SMALL_MODELS)]
        files = [path / "model.safetensors" for path in paths]
        if method == "safetensors":
            wait_for_quiet(self.patience_s)
            prepare(files, cold=False)
            with LoadWatch() as watch:
                models = [{n: t.clone() for n, t in load_file(path / "model.safetensors").items()} for path in paths]
            del models
        else:
            with new_store(SMALL_MODELS * (SMALL_BYTES + (3 << 20)), chunk_bytes=2 << 20) as store:
                wait_for_quiet(self.patience_s)
                prepare(files, cold=False)
                with LoadWatch() as watch:
                    entries = [ticket.result() for ticket in [store.load(path) for path in paths]]
                    for entry in entries:
                        entry.torch("layer.0")
                del entries, entry
        gc.collect()
        return watch.answer(SMALL_MODELS * SMALL_BYTES)

    def concurrent(self, at_once: bool) -> Answer:
        """Eight cold loads: all asked for at once, or each after the one before."""
        numbers = range(CONCURRENT * 20)
        paths = [self.small / f"{number:03}" for number in numbers]
        groups = [self._gather(group, paths[group * 20 : group * 20 + 20]) for group in range(CONCURRENT)]
        wait_for_quiet(self.patience_s)
        prepare([path for group in groups for path in group.glob("*.safetensors")], cold=True)
        if "model" in self.store:
            self.store.evict("model")
        with LoadWatch() as watch:
            if at_once:
                for ticket in [self.store.load(group, group.name) for group in groups]:
                    ticket.result().close()
            else:
                for group in groups:
                    self.store.load(group, group.name).result().close()
        for group in groups:
            self.store.evict(group.name)
        return watch.answer(CONCURRENT * 20 * SMALL_BYTES)

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
            wait_for_quiet(self.patience_s)
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
        if "model" in self.store:
            self.store.evict("model")
        wait_for_quiet(self.patience_s)
        prepare(self.files, cold=True)
        alone = [count_for(0.3)]
        ticket = self.store.load(self.model, "model")
        during = count_for(0.3)
        still_loading = not ticket.done()
        ticket.result().close()
        alone.append(count_for(0.3))
        return {"share": during / statistics.mean(alone), "still_loading": still_loading}

    def aged(self, is_scattered: bool) -> Answer:
        """Load a third of the model, cold, into chunks in order, or scattered as after long use."""
        shard = self.files[0]
        chunk_bytes = 16 << 20
        with new_store(2 * shard.stat().st_size + 4 * chunk_bytes, chunk_bytes=chunk_bytes) as store:
            if is_scattered:
                keys: list[str] = []
                while store.stats().free_bytes:
                    keys.append(str(len(keys)))
                    store.load(self.small / f"{len(keys) % SMALL_MODELS:03}", keys[-1]).result().close()
                for key in keys[::2]:
                    store.evict(key)
                for key in keys[1::2]:
                    store.pin(key)
            wait_for_quiet(self.patience_s)
            prepare([shard], cold=True)
            with LoadWatch() as watch:
                store.load(shard, "shard").result().close()
        return watch.answer(shard.stat().st_size)

    def fragmented(self, ballast_bytes: int) -> Answer:
        """Cold loads of a third of the model into new stores, with the machine's free memory in pieces and without."""
        shard = self.files[0]
        answer: Answer = {}
        self.store.close()
        del self.store, self.memory, self.copier, self.methods
        gc.collect()
        check_memory(ballast_bytes + 4 * shard.stat().st_size)
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


def check_memory(nbytes: int) -> None:
    """Refuse to go on where that would drive the machine out of memory."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    available = int(line.split()[1]) * 1024
    if available < nbytes:
        raise MemoryError(f"{available} bytes of memory are available, {nbytes} are wanted")


def in_pieces(nbytes: int) -> tuple[int, int]:
    """Memory of which every second page is given back: what is free then lies in single pages."""
    address = libc().mmap(None, nbytes, 3, 0x22, -1, 0)
    libc().madvise(address, nbytes, 15)  # no huge pages
    torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=torch.uint8).fill_(1)
    for place in range(0, nbytes, 2 * PAGE_BYTES):
        libc().madvise(address + place, PAGE_BYTES, 4)
    return address, nbytes


def libc() -> Any:
    """The C library, with the types of what is called here."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
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
    """Bring the files into the page cache, or out of it; returns the share of their pages that is in it.

    What is there goes first either way: whoever read a file before decides in how large pieces the page cache has it,
    and that in turn how fast it can be copied. Here it is always plain reading.
    """
    for path in files:
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not cold:
                while file.read(1 << 22):
                    pass
    return statistics.mean(cached_share(path) for path in files)


def cached_share(path: Path) -> float:
    """The share of a file's pages that is in the page cache, by mincore(2)."""
    library, size = libc(), path.stat().st_size
    with path.open("rb") as file:
        address = library.mmap(None, size, 1, 1, file.fileno(), 0)
    pages = (ctypes.c_ubyte * (-(-size // PAGE_BYTES)))()
    library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
    library.munmap(address, size)
    return sum(page & 1 for page in bytes(pages)) / len(pages)


def wait_for_quiet(patience_s: float) -> None:
    """Wait until other processes leave the processors alone, but no longer than that."""
    deadline = time.perf_counter() + patience_s
    while time.perf_counter() < deadline:
        before_s = busy_s()
        time.sleep(QUIET_S)
        if busy_s() - before_s <= QUIET_S * QUIET_SHARE:
            return


def busy_s() -> float:
    """Seconds that all processors together were busy since the start."""
    user, nice, system, _, _, irq, soft_irq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


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


def apart(folder: Path, method: str, cold: bool, patience_s: float) -> Answer:
    """Measure one of those that allocate for themselves."""
    files = [file.path for file in qml.inspect(folder / "model").files]
    read = [folder / TENSORIZER_FILE] if method == "tensorizer" else files
    load: Callable[[], object] = {
        "safetensors load_file + clone": lambda: methods.load_and_clone(files),
        "transformers from_pretrained": lambda: methods.from_pretrained(folder / "model"),
        "fastsafetensors": lambda: methods.fastsafetensors(files, 16),
        "runai-model-streamer": lambda: methods.runai(files),
        "tensorizer": lambda: methods.tensorizer(read[0]),
    }[method]
    if ALLOCATING[method]:
        importlib.import_module(ALLOCATING[method])
    wait_for_quiet(patience_s)
    cached = prepare(read, cold)
    with LoadWatch() as watch:
        result = load()
    answer = watch.answer(sum(path.stat().st_size for path in files)) | {"cached_before": cached}
    del result
    return answer


def main(folder: str, library: str, patience_s: str) -> None:
    """Answer until there are no more questions."""
    torch.set_num_threads(2)
    # Should memory run out after all, this is what has to go.
    Path("/proc/self/oom_score_adj").write_text("1000")
    worker = Worker(Path(folder), Path(library), float(patience_s))
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
    if sys.argv[1] == "--apart":
        _, _, place, name, is_cold, patience = sys.argv
        print(json.dumps(apart(Path(place), name, is_cold == "1", float(patience))), flush=True)
    else:
        main(*sys.argv[1:])
