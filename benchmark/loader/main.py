"""How fast quick_model_loader is, next to the machine's limits and to every peer that can be installed.

    python -m benchmark.loader [--rounds 5] [--folder DIR] [--output DIR]

Makes an environment of its own for the peers, a 3 GB model and 200 small ones; then measures everything in turn,
round after round, so that a machine that changes its speed changes it for all. What counts are medians, and ratios
taken within a round. Writes a table to the terminal, and JSON and a figure to ``benchmark/results``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.command.errors import BenchmarkError
from benchmark.command.main import count, draw_result, run_command
from benchmark.command.result_file import RESULTS, write_result

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOADER = ROOT / "quick_model_loader"
OURS, VERIFIED = "quick_model_loader", "quick_model_loader, verified"
FIO, COPY, COPY_OUT = "fio, direct", "non-temporal copy, 2 threads", "arena to memory"
PEERS = ("fastsafetensors", "runai-model-streamer", "tensorizer")
NOT_INSTALLABLE = {
    "ServerlessLLM store": "the package index has an empty placeholder (0.0.0) only; building it needs CUDA",
    "InstantTensor": "installs, but loads to CUDA devices only",
}
BOTH = (
    OURS,
    "original",
    "safetensors get_tensor",
    "safetensors load_file + clone",
    "transformers from_pretrained",
    *PEERS,
)
COLD = (*BOTH, VERIFIED, "pread, 4 threads")
WARM = (
    *BOTH,
    "pread, 1 thread",
    "pread, 4 threads",
    "memcpy, 2 threads",
    "non-temporal copy, 1 thread",
    COPY,
    COPY_OUT,
)
GB = 1e9
QUIET_CORES, MIN_QUIET_ROUNDS = 0.25, 3
Rounds = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Criterion:
    """Something that the loader must show."""

    text: str
    target: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it does; None if it could not be measured."""
        if self.measured is None:
            return None
        return self.measured <= self.target if self.at_most else self.measured >= self.target


class WorkerProcess:
    """The process among the peers."""

    def __init__(self, python: Path, folder: Path, library: Path, patience_s: float) -> None:
        command = [str(python), "-m", "benchmark.loader.worker", str(folder), str(library), str(patience_s)]
        pipe = subprocess.PIPE
        # What the peers have to say goes to a file of its own.
        with (folder / "worker.log").open("w") as log:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, cwd=ROOT)
        self.facts = self._hear()

    def ask(self, what: str, **question: object) -> dict[str, Any]:
        """One answer; ``error`` in it says what went wrong."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **question}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the worker died; see worker.log in the folder")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.loader", description="Measure quick_model_loader against its limits and its peers."
    )
    parser.add_argument("--rounds", type=count, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--folder", type=Path, help="where models and environment go, and stay (default: temporary)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--patience-s", type=float, default=3.0, help="how long to wait for idle processors, each time")
    parser.add_argument("--ballast-gb", type=float, default=8.0, help="memory to break into pieces (0: leave that out)")
    options = parser.parse_args()
    return run_command("loader", lambda: _run(options, Console()))


def _run(options: argparse.Namespace, console: Console) -> int:
    with folder_for(options.folder) as folder:
        with console.status("environment: the peers are installed, the loader is built"):
            python, installed = make_environment(folder / "venv")
            library = build_library(folder)
        with console.status("models are written, memory is faulted in"):
            worker = WorkerProcess(python, folder, library, options.patience_s)
        cold, warm = measure(worker, folder / "model", options.rounds, console)
        extras = measure_extras(worker, options.rounds, options.ballast_gb, console)
        worker.close()
    criteria = judge(cold, warm, extras)
    report(console, cold, warm, extras, criteria)
    save(options.output / "loader.json", cold, warm, extras, criteria, installed | worker.facts)
    draw_result(options.output / "loader.json", console)
    return 0 if all(criterion.met is not False for criterion in criteria) else 1


@contextmanager
def folder_for(wanted: Path | None) -> Iterator[Path]:
    """The folder that was named, or one that goes away."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return
    # On the disk of this file: /tmp may be memory, which has no direct reads.
    with tempfile.TemporaryDirectory(prefix=".loader-benchmark-", dir=HERE) as name:
        yield Path(name)


def make_environment(folder: Path) -> tuple[Path, dict[str, Any]]:
    """An environment with the loader and all peers; which version of what could be installed."""
    python = folder / "bin" / "python"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    env = os.environ | {"VIRTUAL_ENV": str(folder)}
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    torch = f"torch=={version_here('torch')}"
    base = [torch, "safetensors", "transformers", "accelerate", "numpy", str(LOADER)]
    subprocess.run([*install, "--reinstall-package", "quick-model-loader", *base], check=True, env=env)
    missing = {}
    for peer in PEERS:
        done = subprocess.run([*install, peer], capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            missing[peer] = done.stderr.strip().splitlines()[-1]
    listed = subprocess.run(
        [uv, "pip", "list", "--format", "json", "--python", str(python)], capture_output=True, check=True
    )
    names = {"torch", "safetensors", "transformers", "quick-model-loader", *PEERS}
    versions = {item["name"]: item["version"] for item in json.loads(listed.stdout) if item["name"] in names}
    return python, {"versions": versions, "not_installable": NOT_INSTALLABLE | missing, "machine": machine()}


def version_here(package: str) -> str:
    """The version of a package of this environment, so that the other one need not download another."""
    from importlib.metadata import version

    return version(package).split("+")[0]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"kernel": platform.release(), "cores": os.cpu_count(), "memory_bytes": memory_bytes}


def build_library(folder: Path) -> Path:
    """The C functions that show what memory allows."""
    library = folder / "libloader_copy.so"
    source = HERE / "copy.c"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def measure(worker: WorkerProcess, model: Path, rounds: int, console: Console) -> tuple[Rounds, Rounds]:
    """Cold and warm measurements of all methods, by name; a method that failed in two rounds is left out then."""
    cold: Rounds = defaultdict(list)
    warm: Rounds = defaultdict(list)
    for number in range(rounds):
        for results, methods in ((cold, (FIO, *COLD)), (warm, WARM)):
            # Who comes after whom changes from round to round.
            turn = number * 3 % len(methods)
            for method in (*methods[turn:], *methods[:turn]):
                if sum("error" in answer for answer in results[method]) > 1:
                    continue
                kind = "cold" if results is cold else "warm"
                with console.status(f"round {number + 1} of {rounds}, {kind}: {method}"):
                    is_cold = results is cold
                    answer = run_fio(model) if method == FIO else worker.ask("run", method=method, cold=is_cold)
                results[method].append(answer)
                said = answer["error"] if "error" in answer else f"{speed(answer):.2f} GB/s"
                console.print(f"round {number + 1}, {kind}: {method}: {said}", markup=False, soft_wrap=True)
    return dict(cold), dict(warm)


def run_fio(model: Path) -> dict[str, Any]:
    """What the disk gives: eight direct reads of 8 MiB under way, into huge pages."""
    if shutil.which("fio") is None:
        return {"error": "fio is not installed"}
    files = ":".join(str(path) for path in sorted(model.glob("*.safetensors")))
    job = ["--name=limit", "--rw=read", "--direct=1", "--bs=8M", "--ioengine=io_uring", "--iodepth=8"]
    place = [f"--filename={files}", "--file_service_type=sequential", "--readonly", "--output-format=json"]
    # The C library's allocator then asks for huge pages.
    env = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(["fio", *job, *place], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        return {"error": done.stderr.strip()}
    read = json.loads(done.stdout)["jobs"][0]
    seconds = read["read"]["runtime"] / 1000
    cpu_s = seconds * (read["usr_cpu"] + read["sys_cpu"]) / 100
    return {
        "seconds": read["read"]["io_bytes"] / read["read"]["bw_bytes"],
        "bytes": read["read"]["io_bytes"],
        "cpu_s": cpu_s,
    }


def measure_extras(worker: WorkerProcess, rounds: int, ballast_gb: float, console: Console) -> Rounds:
    """Everything that is not one model loaded once."""
    results: Rounds = defaultdict(list)
    questions: list[tuple[str, str, dict[str, object]]] = [
        ("small, safetensors", "small_models", {"method": "safetensors"}),
        ("small, ours", "small_models", {"method": "store"}),
        ("eight, one after the other", "concurrent", {"at_once": False}),
        ("eight, at once", "concurrent", {"at_once": True}),
        ("gil", "gil", {}),
        ("scattered chunks", "aged", {"is_scattered": True}),
        ("chunks in order", "aged", {"is_scattered": False}),
        ("attach", "attach", {"count": 200}),
    ]
    for number in range(rounds):
        for name, what, question in questions:
            with console.status(f"round {number + 1} of {rounds}: {name}"):
                results[name].append(worker.ask(what, **question))
    if ballast_gb > 0:
        with console.status("memory in pieces"):
            results["fragmented"].append(worker.ask("fragmented", ballast_bytes=int(ballast_gb * (1 << 30))))
    return dict(results)


def speed(answer: dict[str, Any]) -> float:
    """GB/s."""
    return float(answer["bytes"] / answer["seconds"] / GB)


def measured(results: Rounds, name: str) -> list[dict[str, Any]]:
    """The answers that are no errors; none where most are."""
    answers = results.get(name, [])
    good = [answer for answer in answers if "error" not in answer]
    return good if 2 * len(good) > len(answers) else []


def median_speed(results: Rounds, name: str) -> float | None:
    """GB/s, or None if it could not be measured."""
    answers = measured(results, name)
    return statistics.median(map(speed, answers)) if answers else None


def ratio(results: Rounds, name: str, other: str) -> float | None:
    """How many times as fast as another, round by round, the median.

    Rounds in which other processes took much of the machine do not count, if enough others are left.
    """
    if not measured(results, name) or not measured(results, other):
        return None
    rounds = zip(results[name], results[other], strict=True)
    pairs = [pair for pair in rounds if not any("error" in answer for answer in pair)]
    quiet = [pair for pair in pairs if all(answer.get("others", 0.0) <= QUIET_CORES for answer in pair)]
    chosen = quiet if len(quiet) >= MIN_QUIET_ROUNDS else pairs
    return statistics.median(speed(one) / speed(two) for one, two in chosen)


def middle(results: Rounds, name: str, field: str) -> float | None:
    """The median of a field."""
    answers = measured(results, name)
    return float(statistics.median(answer[field] for answer in answers)) if answers else None


def judge(cold: Rounds, warm: Rounds, extras: Rounds) -> list[Criterion]:
    """What the loader must show, and what was measured."""
    cpu_s, nbytes = middle(cold, OURS, "cpu_s"), middle(cold, OURS, "bytes")
    verified = ratio(cold, VERIFIED, OURS)
    attach, gil = middle(extras, "attach", "median"), middle(extras, "gil", "share")
    pieces = extras.get("fragmented", [{"error": "left out"}])[0]
    return [
        Criterion("cold: of fio's direct read", 0.95, ratio(cold, OURS, FIO)),
        Criterion("cold: ahead of the original", 1.4, ratio(cold, OURS, "original")),
        Criterion("cold: ahead of get_tensor", 1.7, ratio(cold, OURS, "safetensors get_tensor")),
        Criterion("cold: ahead of load_file + clone", 2.6, ratio(cold, OURS, "safetensors load_file + clone")),
        Criterion("cold: ahead of fastsafetensors", 2.5, ratio(cold, OURS, "fastsafetensors")),
        Criterion("cold: ahead of tensorizer", 1.2, ratio(cold, OURS, "tensorizer")),
        Criterion("cold: of runai-model-streamer", 0.97, ratio(cold, OURS, "runai-model-streamer")),
        Criterion("warm: of a non-temporal copy", 0.85, ratio(warm, OURS, COPY)),
        Criterion("warm: ahead of pread, 4 threads", 1.2, ratio(warm, OURS, "pread, 4 threads")),
        Criterion("warm: ahead of memcpy, 2 threads", 1.2, ratio(warm, OURS, "memcpy, 2 threads")),
        Criterion("warm: ahead of load_file + clone", 5.0, ratio(warm, OURS, "safetensors load_file + clone")),
        Criterion("arena to memory: of a non-temporal copy", 0.9, ratio(warm, COPY_OUT, COPY)),
        Criterion("scattered chunks: of chunks in order", 0.95, ratio(extras, "scattered chunks", "chunks in order")),
        Criterion(
            "memory in pieces: of fresh memory",
            0.95,
            None if "error" in pieces else pieces["fragmented"] / pieces["fresh"],
        ),
        Criterion("xxh3, cold: costs", 0.05, None if verified is None else 1 - verified, at_most=True),
        Criterion(
            "cold: CPU-s per GB", 0.05, None if cpu_s is None or not nbytes else cpu_s / nbytes * GB, at_most=True
        ),
        Criterion("200 small models: ahead of safetensors", 5.0, ratio(extras, "small, ours", "small, safetensors")),
        Criterion("8 loads at once: of one by one", 1.0, ratio(extras, "eight, at once", "eight, one after the other")),
        Criterion("attach + first tensor: ms", 1.0, None if attach is None else attach * 1000, at_most=True),
        Criterion("a Python thread meanwhile: of its speed", 0.9, gil),
    ]


def report(console: Console, cold: Rounds, warm: Rounds, extras: Rounds, criteria: list[Criterion]) -> None:
    """Tables for people."""
    table = Table("", "cold, GB/s", "of fio", "CPU-s/GB", "warm, GB/s", "of the copy", title="one model, medians")
    for name in dict.fromkeys((FIO, COPY, *COLD, *WARM)):
        cpu_s, nbytes = middle(cold, name, "cpu_s"), middle(cold, name, "bytes")
        table.add_row(
            name,
            show(median_speed(cold, name)),
            show(ratio(cold, name, FIO)),
            show(cpu_s / nbytes * GB if cpu_s is not None and nbytes else None),
            show(median_speed(warm, name)),
            show(ratio(warm, name, COPY)),
        )
    console.print(table)
    table = Table("what it must show", "target", "measured", "", title="criteria")
    for criterion in criteria:
        sign = "≤" if criterion.at_most else "≥"
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: "[yellow]not measured[/]"}[criterion.met]
        table.add_row(criterion.text, f"{sign} {criterion.target:g}", show(criterion.measured), verdict)
    console.print(table)
    errors = {
        name: answer["error"]
        for results in (cold, warm, extras)
        for name, answers in results.items()
        for answer in answers
        if "error" in answer
    }
    for name, error in (NOT_INSTALLABLE | errors).items():
        console.print(f"not measured: {name}: {error}", soft_wrap=True, markup=False)


def show(number: float | None) -> str:
    """Two digits behind the point, or a dash."""
    return "-" if number is None else f"{number:.3f}" if abs(number) < 0.1 else f"{number:.2f}"


def save(
    path: Path, cold: Rounds, warm: Rounds, extras: Rounds, criteria: list[Criterion], facts: dict[str, Any]
) -> None:
    """Every single measurement as JSON, and what its figure shows."""
    judged = [
        {"what": c.text, "target": c.target, "at_most": c.at_most, "measured": c.measured, "met": c.met}
        for c in criteria
    ]
    shown = {"figure": figure(cold, warm, facts)}
    measured_all = {"facts": facts, "criteria": judged, "cold": cold, "warm": warm, "extras": extras}
    write_result(path, "loader", {**measured_all, **shown})


def figure(cold: Rounds, warm: Rounds, facts: dict[str, Any]) -> dict[str, Any]:
    """What the figure shows: medians and extremes of what was measured, the limits, and where it was."""
    where = f"{facts['machine']['cores']} cores, Linux {facts['machine']['kernel']}"
    return {
        "title": f"{facts['model_bytes'] / GB:.2f} GB, {facts['tensors']} tensors, {where}",
        "panels": [_panel("cold", cold, FIO), _panel("warm", warm, COPY)],
    }


def _panel(title: str, results: Rounds, limit: str) -> dict[str, Any]:
    speeds = {name: list(map(speed, answers)) for name in results if (answers := measured(results, name))}
    bars = [
        {
            "name": name,
            "median": statistics.median(found),
            "low": min(found),
            "high": max(found),
            "ours": name.startswith(OURS),
        }
        for name, found in speeds.items()
    ]
    return {"title": title, "limit": {"name": limit, "median": median_speed(results, limit) or 0.0}, "bars": bars}
