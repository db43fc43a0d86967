"""The shared-memory ring and descriptor exchange, between real processes."""

from __future__ import annotations

import multiprocessing
import os
import select

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon.runtime.wire.fd_exchange import FdExchangeError, FdServer, fetch_fds
from aegaeon.runtime.wire.link import create_link, open_link
from aegaeon.runtime.wire.ring import RingReader, RingWriter, create_ring, duplicate_fds


def _wait(fd: int) -> None:
    assert wait_for(fd), "the doorbell did not ring"


def wait_for(*fds: int) -> bool:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(30_000))


def _echo(address: str) -> None:
    link = open_link(address, "link")
    while True:
        _wait(link.data_fd)
        for message in link.drain():
            if message == "stop":
                return
            link.send(message)
            while link.pending:
                _wait(link.room_fd)
                link.flush()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=40), st.integers(64, 400), st.randoms(use_true_random=False))
def test_messages_arrive_whole_and_in_order_whatever_the_capacity(messages, capacity_bytes, random):
    fds = create_ring(capacity_bytes)
    writer, reader = RingWriter(duplicate_fds(fds)), RingReader(fds)
    received = []
    for message in messages:
        writer.send(message)
        if random.random() < 0.4:
            received.extend(reader.drain())
            writer.flush()
    while writer.pending:
        received.extend(reader.drain())
        writer.flush()
    received.extend(reader.drain())
    writer.close()
    reader.close()
    assert received == messages


def test_another_process_echoes_messages_larger_than_the_ring():
    link, fds = create_link()
    server = FdServer({"link": fds}.__getitem__)
    process = multiprocessing.get_context("spawn").Process(target=_echo, args=(server.address,))
    process.start()
    sent = [os.urandom(size) for size in (1, 1000, 3 << 20, 10)] + [list(range(1000))]
    received: list[object] = []
    for message in sent:
        link.send(message)
    while len(received) < len(sent):
        wait_for(link.data_fd, link.room_fd)
        link.flush()
        received.extend(link.drain())
    link.send("stop")
    process.join(30)
    server.close()
    link.close()
    assert process.exitcode == 0
    assert received == sent


def test_unknown_names_and_dead_servers_are_clear_errors():
    server = FdServer({}.__getitem__)
    with pytest.raises(FdExchangeError, match="does not provide nothing"):
        fetch_fds(server.address, "nothing")
    server.close()
    with pytest.raises(FdExchangeError, match="cannot fetch"):
        fetch_fds(server.address, "nothing")


def test_a_full_ring_never_blocks_and_loses_nothing():
    fds = create_ring(256)
    writer, reader = RingWriter(duplicate_fds(fds)), RingReader(fds)
    for index in range(100):
        writer.send(index)
    assert writer.pending
    received = list(reader.drain())
    _wait(writer.room_fd)
    while writer.pending:
        writer.flush()
        received.extend(reader.drain())
    received.extend(reader.drain())
    assert received == list(range(100))
