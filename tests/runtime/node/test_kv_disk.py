"""The threads between the slab cache and a folder: told of what was done, and of what could not be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import TypeVar

import pytest

from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.kv_disk import KvDisk
from aegaeon.runtime.node.kv_folder import KvFolder
from tests.runtime.node.test_kv_folder import SIZE_BYTES, content, file_of, stored

T = TypeVar("T")
BLOCKS = tuple(replace(stored(number), offset=number * SIZE_BYTES) for number in range(4))
NAMES = tuple(block.name for block in BLOCKS)


class Played:
    """A disk of a slab cache of some blocks, and what it tells."""

    def __init__(self, folder: Path) -> None:
        self.slabs = create_memfd("slabs", 8 * SIZE_BYTES, flag="")
        self.told: Queue[i.DriverInput] = Queue()
        self.disk = KvDisk(folder, self.slabs, self.told.put)

    def expect(self, kind: type[T]) -> T:
        message = self.told.get(timeout=30)
        assert isinstance(message, kind), message
        return message

    def fill(self) -> None:
        for block, number in zip(BLOCKS, range(4), strict=True):
            os.pwrite(self.slabs, content(number), block.offset)

    def keep(self, names: tuple[bytes, ...] = NAMES) -> i.KvWritten:
        self.disk.do(o.CopyKv(BLOCKS))
        self.expect(i.KvCopied)
        self.disk.do(o.WriteKv(names))
        return self.expect(i.KvWritten)

    def read(self) -> int:
        os.pwrite(self.slabs, bytes(8 * SIZE_BYTES), 0)
        self.disk.do(o.ReadKv(7, BLOCKS))
        read = self.expect(i.KvRead)
        assert read.reading == 7
        for number in range(read.blocks):
            assert os.pread(self.slabs, SIZE_BYTES, BLOCKS[number].offset) == content(number)
        return read.blocks

    def close(self) -> None:
        self.disk.close()
        os.close(self.slabs)


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    made = Played(tmp_path)
    yield made
    made.close()


def test_what_is_written_is_read_and_found_by_the_next(tmp_path: Path) -> None:
    first = Played(tmp_path)
    assert first.expect(i.KvFound).files == ()
    first.fill()
    assert first.keep() == i.KvWritten(NAMES)
    assert first.read() == 4
    first.close()
    again = Played(tmp_path)
    assert {name for name, _ in again.expect(i.KvFound).files} == set(NAMES)
    assert again.read() == 4
    again.disk.do(o.RemoveKv(NAMES[2:3]))
    again.disk.do(o.CopyKv(()))
    again.expect(i.KvCopied)
    assert again.read() == 2
    again.close()


def test_what_was_given_up_while_it_was_copied_is_not_written(played: Played) -> None:
    played.expect(i.KvFound)
    played.fill()
    assert played.keep(NAMES[:2]).names == NAMES[:2]
    assert played.read() == 2


def test_a_damaged_file_is_said_in_a_line_and_ends_what_is_read(
    played: Played, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    played.expect(i.KvFound)
    played.fill()
    played.keep()
    os.truncate(file_of(tmp_path, 1), 100)
    assert played.read() == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"KV on disk is not used: {file_of(tmp_path, 1)}: has 100 bytes, not {BLOCKS[1].file_bytes}"
    ]


def test_what_lies_in_the_place_of_a_block_keeps_no_other_from_being_written(
    played: Played, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    played.expect(i.KvFound)
    played.fill()
    file_of(tmp_path, 2).mkdir()
    written = played.keep()
    assert (written.names, written.problem) == ((*NAMES[:2], NAMES[3]), "")
    assert f"cannot write KV to disk: {file_of(tmp_path, 2)}: Is a directory" in caplog.text


def test_where_there_is_no_memory_for_copies_nothing_is_written_and_all_goes_on(
    played: Played, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> bytes:
        raise MemoryError

    played.expect(i.KvFound)
    played.fill()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        assert played.keep() == i.KvWritten(())
    assert "4 blocks of KV are not kept on disk" in caplog.text
    assert played.keep() == i.KvWritten(NAMES)


def test_a_disk_that_takes_nothing_is_told_of_with_the_reason(played: Played, tmp_path: Path) -> None:
    played.expect(i.KvFound)
    played.fill()
    for number in range(4):
        file_of(tmp_path, number).mkdir()
    written = played.keep()
    assert (written.names, written.problem) == ((), f"{file_of(tmp_path, 3)}: Is a directory")


def test_a_folder_that_cannot_be_used_is_said_in_a_line_and_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kv").write_text("")
    played = Played(tmp_path / "kv")
    played.disk.do(o.CopyKv(()))
    played.expect(i.KvCopied)
    played.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"no KV is kept on disk: --kv-disk: {tmp_path / 'kv'} cannot be used: File exists"
    ]


def test_whoever_comes_while_the_last_one_still_has_the_folder_waits_for_it(tmp_path: Path) -> None:
    before = KvFolder(tmp_path)
    played = Played(tmp_path)
    assert played.told.empty()
    before.close()
    assert played.expect(i.KvFound).files == ()
    played.close()
