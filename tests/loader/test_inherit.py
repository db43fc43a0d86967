"""An arena that outlives its store: whoever has the heirlooms of a process that was killed goes on with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import quick_model_loader as qml

from .conftest import MIB, SMALL_CHUNK_BYTES

WriteModel = Callable[..., Path]


def own_and_wait(channel: socket.socket, paths: list[Path], evicted: list[str]) -> None:
    """Load, give up, hand out the heirlooms, and live until killed; then load one more whenever told."""
    store = qml.Store(8 * SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES)
    for path in paths:
        store.load(path, path.stem).result().close()
    for key in evicted:
        store.evict(key)
    socket.send_fds(channel, [b"."], list(store.heirlooms()))
    while path := channel.recv(4096):
        entry = store.load(Path(path.decode()), Path(path.decode()).stem).result()
        channel.send(b".")
        entry.close()


@contextlib.contextmanager
def killed_owner(
    paths: list[Path], evicted: list[str] | None = None, later: list[Path] | None = None
) -> Iterator[tuple[int, int]]:
    """The heirlooms of a store whose process has been killed."""
    ours, theirs = socket.socketpair()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=own_and_wait, args=(theirs, paths, evicted or []))
    with ours:
        process.start()
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        for path in later or []:
            ours.send(str(path).encode())
            ours.recv(1)
        process.kill()
        process.join()
    try:
        yield fds[0], fds[1]
    finally:
        for fd in fds:
            os.close(fd)


def content(store: qml.Store, key: str) -> set[int]:
    with store.get(key) as entry:
        return set(bytes(entry.bytes("t")))


def test_entries_are_where_they_were_and_nothing_is_read(write_model: WriteModel) -> None:
    paths = [write_model(name, 3 * MIB, fill) for name, fill in (("a", 1), ("b", 2), ("c", 3))]
    later = write_model("later", MIB, 4)
    with killed_owner(paths, evicted=["b"], later=[later]) as heirlooms, qml.Store.inherit(*heirlooms) as store:
        assert store.keys() == ["a", "c", "later"]
        assert [content(store, key) for key in ("a", "c", "later")] == [{1}, {3}, {4}]
        found = store.load(paths[0], "a").result()
        stats = store.stats()
        assert (stats.loads, stats.hits, stats.capacity_bytes) == (0, 1, 8 * SMALL_CHUNK_BYTES)
        assert found.report is not None
        assert found.report.direct_bytes + found.report.buffered_bytes == 0
        assert found.handle().key == "a"
        found.close()
        assert store.load(paths[1], "b").result().report is not None
        assert content(store, "b") == {2}


def test_its_room_is_used_again_and_it_can_be_inherited_again(write_model: WriteModel) -> None:
    paths = [write_model(name, 4 * MIB - 8192, fill) for name, fill in (("a", 1), ("b", 2), ("c", 3), ("d", 4))]
    large = write_model("large", 10 * MIB, 9)
    with killed_owner(paths) as heirlooms:
        with qml.Store.inherit(*heirlooms) as store:
            assert store.stats().free_bytes == 0
            store.load(large, "large").result().close()
            assert store.keys() == ["d", "large"]
            again = store.heirlooms()
        with qml.Store.inherit(*again) as heir:
            assert heir.keys() == ["d", "large"]
            assert [content(heir, key) for key in ("d", "large")] == [{4}, {9}]
        for fd in again:
            os.close(fd)


def test_a_model_whose_file_has_changed_is_read_again(write_model: WriteModel) -> None:
    paths = [write_model(name, MIB, fill) for name, fill in (("a", 1), ("b", 2))]
    with killed_owner(paths) as heirlooms:
        write_model("a", MIB, 7)
        paths[1].unlink()
        with qml.Store.inherit(*heirlooms) as store:
            assert store.keys() == []
            store.load(paths[0], "a").result().close()
            assert content(store, "a") == {7}


def test_what_is_no_heirloom_is_refused() -> None:
    one, other = os.memfd_create("one"), os.memfd_create("other")
    with pytest.raises(qml.IoError):
        qml.Store.inherit(one, other)
    with pytest.raises(ValueError, match="-1 is no descriptor"):
        qml.Store.inherit(-1, other)
    with qml.Store(SMALL_CHUNK_BYTES, chunk_bytes=SMALL_CHUNK_BYTES) as store:
        arena, journal = store.heirlooms()
        with pytest.raises(qml.IoError):
            qml.Store.inherit(one, journal)
    for fd in (one, other, arena, journal):
        os.close(fd)
