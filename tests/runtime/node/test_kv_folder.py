"""Blocks of KV in files: what is read is what was written, whatever has happened to folder and files since."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegaeon.memory.stored_block import StoredBlock
from aegaeon.memory.token_hash import next_name, packed, root_name
from aegaeon.runtime.node.kv_folder import BadBlockError, KvFolder, KvFolderError

SIZE_BYTES = 5000


def stored(number: int) -> StoredBlock:
    tokens = packed(range(number, number + 16))
    before = root_name("m", str(number))
    return StoredBlock(next_name(before, tokens), before, tokens, 0, SIZE_BYTES)


def content(number: int) -> bytes:
    return bytes((number + index * 7) % 251 for index in range(SIZE_BYTES))


def read(folder: KvFolder, block: StoredBlock) -> bytes:
    into = bytearray(block.size_bytes)
    folder.read(block, memoryview(into))
    return bytes(into)


@contextmanager
def opened(path: Path) -> Iterator[KvFolder]:
    folder = KvFolder(path)
    try:
        yield folder
    finally:
        folder.close()


def file_of(path: Path, number: int) -> Path:
    return path / f"{stored(number).name.hex()}.kv"


def test_blocks_are_there_for_the_next_process_in_the_order_of_their_use(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "kv") as folder:
        for number in range(3):
            folder.write(stored(number), content(number))
        for number in range(3):
            os.utime(file_of(tmp_path / "a" / "kv", number), ns=(number, number))
        assert read(folder, stored(1)) == content(1)
    with opened(tmp_path / "a" / "kv") as folder:
        sizes = {stored(number).name: stored(number).file_bytes for number in range(3)}
        assert folder.files() == [(stored(number).name, sizes[stored(number).name]) for number in (0, 2, 1)]
        assert [read(folder, stored(number)) for number in range(3)] == [content(number) for number in range(3)]
        folder.remove(stored(1).name)
        folder.remove(stored(1).name)
        assert len(folder.files()) == 2


def changed_at(place: int) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        whole = bytearray(file.read_bytes())
        whole[place] ^= 1
        file.write_bytes(whole)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another version": changed_at(11),
    "a size": changed_at(13),
    "another name": changed_at(21),
    "other tokens": changed_at(60),
    "a byte of the KV": changed_at(1000),
    "the checksum": changed_at(-1),
    "cut": lambda file: os.truncate(file, SIZE_BYTES),
    "empty": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "another block": lambda file: file.write_bytes(file_of(file.parent, 2).read_bytes()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_not_what_it_is_called_is_removed(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path) as folder:
        for number in (1, 2):
            folder.write(stored(number), content(number))
        DAMAGE[kind](file_of(tmp_path, 1))
        with pytest.raises(BadBlockError):
            read(folder, stored(1))
        assert [name for name, _ in folder.files()] == [stored(2).name]
        folder.write(stored(1), content(1))
        assert read(folder, stored(1)) == content(1)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(__file__)])
def test_what_is_no_file_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    with opened(tmp_path) as folder:
        make(file_of(tmp_path, 1))
        with pytest.raises((BadBlockError, OSError)):
            read(folder, stored(1))


def test_a_file_stays_where_its_reader_is_short_of_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with opened(tmp_path) as folder:
        folder.write(stored(1), content(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(OSError, match="Too many"):
                read(folder, stored(1))
        assert read(folder, stored(1)) == content(1)


def test_what_others_left_stays_and_what_was_not_finished_goes(tmp_path: Path) -> None:
    unfinished, foreign = tmp_path / f"{'0' * 32}.tmp", tmp_path / "notes.kv"
    for file in (unfinished, foreign):
        file.write_text("x")
    with opened(tmp_path) as folder:
        assert folder.files() == []
    assert (unfinished.exists(), foreign.exists()) == (False, True)


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path: Path) -> None:
    first = KvFolder(tmp_path)
    with pytest.raises(KvFolderError, match="in use by another pool or node: give each a folder of its own"):
        KvFolder(tmp_path)

    def wait() -> bool:
        first.close()
        return True

    KvFolder(tmp_path, wait).close()


def test_folders_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KvFolderError, match="file/kv cannot be used: Not a directory"):
        KvFolder(tmp_path / "file" / "kv")
    KvFolder(tmp_path / "kv").close()
    (tmp_path / "kv" / "aegaeon-kv.lock").write_text("format 0\n")
    with pytest.raises(KvFolderError, match="another version of aegaeon: empty it"):
        KvFolder(tmp_path / "kv")


def test_a_disk_that_takes_no_more_keeps_what_it_has(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as folder:
        folder.write(stored(1), content(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_BYTES // 2, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                folder.write(stored(2), content(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [name for name, _ in folder.files()] == [stored(1).name]
        assert not list(tmp_path.glob("*.tmp"))


WRITER = """
import sys
from itertools import count
from pathlib import Path
from aegaeon.runtime.node.kv_folder import KvFolder
from tests.runtime.node.test_kv_folder import content, stored
folder = KvFolder(Path(sys.argv[1]))
for number in count():
    folder.write(stored(number % 50), content(number % 50))
    print(number, flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_whole_blocks(tmp_path: Path) -> None:
    for kills in range(1, 4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(17 * kills):
            writer.stdout.readline()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        with opened(tmp_path) as folder:
            names = [name for name, _ in folder.files()]
            assert len(names) >= min(50, 17 * kills)
            numbers = {stored(number).name: number for number in range(50)}
            for name in names:
                assert read(folder, stored(numbers[name])) == content(numbers[name])
            assert not list(tmp_path.glob("*.tmp"))
