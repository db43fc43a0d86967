"""Checkpoints made of chosen bytes, right and wrong; helpers in C; other processes."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import quick_model_loader as qml

WriteFile = Callable[..., Path]
Compile = Callable[[str], Path]
MIB = 1 << 20
SMALL_CHUNK_BYTES = 2 * MIB
_WAIT_S = 20.0


def header_bytes(header: str | bytes | dict[str, Any]) -> bytes:
    """The header with its length in front."""
    text = json.dumps(header) if isinstance(header, dict) else header
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(8, "little") + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Writes a file with a header and data into the test's directory."""

    def write(name: str, header: str | bytes | dict[str, Any], data: bytes = b"") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header_bytes(header) + data)
        return path

    return write


@pytest.fixture
def write_model(write_file: WriteFile) -> Callable[..., Path]:
    """Writes a model of one tensor `t` of so many bytes, each of which is `fill`."""

    def write(name: str, nbytes: int, fill: int = 7) -> Path:
        return write_file(f"{name}.safetensors", {"t": entry("U8", [nbytes], 0, nbytes)}, bytes([fill]) * nbytes)

    return write


@pytest.fixture
def store() -> Iterator[qml.Store]:
    """A store of eight chunks of 2 MiB."""
    with qml.Store(8 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES) as store:
        yield store


@pytest.fixture(scope="session")
def compile_c(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Makes a shared library of a C file of this folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")

    def compile_file(name: str) -> Path:
        source = Path(__file__).with_name(name)
        library = folder / f"lib{source.stem}.so"
        if not library.exists():
            command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source)]
            subprocess.run([*command, "-ldl", "-lpthread"], check=True)
        return library

    return compile_file


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes and threads bring about; fails if they do not."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


class Process:
    """A Python process that runs a program and is told, and tells, lines."""

    def __init__(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-c", program, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def say(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return line.removesuffix("\n")

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end: status, what else it printed, and what it complained of."""
        output, errors = self.process.communicate(timeout=_WAIT_S)
        return self.process.returncode, output, errors
