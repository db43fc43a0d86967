"""Checksums: written, compared, refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import quick_model_loader as qml

from .conftest import MIB

WriteModel = Callable[..., Path]


def damage(path: Path, offset: int) -> None:
    """Flip a bit; the file keeps its times, as when a disk rots."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_damage_is_found_by_verify_and_by_loads_that_ask(store: qml.Store, write_model: WriteModel) -> None:
    path = write_model("a", 12 * MIB)
    checkpoint = qml.inspect(path)
    token = qml.CancelToken()
    assert checkpoint.write_checksums(cancel=token) == [path.with_name("a.safetensors.xxh3")]
    assert token.bytes == checkpoint.total_bytes
    checkpoint.verify()
    with store.load(path, "good", verify=True).result() as found:
        assert found.bytes("t")[-1] == 7
    store.evict("good")
    damage(path, 9 * MIB)
    with pytest.raises(qml.ChecksumError, match="are damaged: checksum") as caught:
        checkpoint.verify()
    assert (caught.value.path, caught.value.tensor, caught.value.offset) == (path, "t", 8 * MIB)
    with pytest.raises(qml.ChecksumError) as caught:
        store.load(path, "bad", verify=True).result()
    assert (caught.value.path, caught.value.tensor, caught.value.offset) == (path, "t", 8 * MIB)
    assert store.stats().free_bytes == store.stats().capacity_bytes
    store.load(path, "unasked").result().close()
    assert store.load(path, "unasked", verify=True).exception() is not None  # what is there was not verified


def test_each_file_has_its_own(tmp_path: Path, write_model: WriteModel) -> None:
    first, second = write_model("1", 100, 1), write_model("2", 9 * MIB, 2)
    second.write_bytes(second.read_bytes().replace(b'"t"', b'"u"'))
    written = qml.inspect(tmp_path).write_checksums(threads=1, direct=False)
    assert written == [Path(f"{path}.xxh3") for path in (first, second)]
    assert qml.inspect(tmp_path).files[1].path == second  # they are no checkpoints themselves
    qml.inspect(tmp_path).verify(threads=3, direct=True)
    assert [len(json.loads(path.read_text())["chunks"]) for path in written] == [1, 2]
    written[0].write_bytes(written[1].read_bytes())
    with pytest.raises(qml.ChecksumError, match="write them again"):
        qml.inspect(tmp_path).verify()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"algorithm":"crc32","file_bytes":1}', b"\xff"])
def test_sidecars_that_are_none(store: qml.Store, write_model: WriteModel, content: bytes) -> None:
    path = write_model("a", 100)
    sidecar = Path(f"{path}.xxh3")
    with pytest.raises(qml.ChecksumError, match="write them with") as caught:
        store.load(path, verify=True).result()
    assert caught.value.path == sidecar
    sidecar.write_bytes(content)
    with pytest.raises(qml.ChecksumError, match="malformed") as caught:
        store.load(path, verify=True).result()
    assert caught.value.path == sidecar
    assert store.stats().free_bytes == store.stats().capacity_bytes


def test_a_directory_that_cannot_be_written_to(write_model: WriteModel) -> None:
    path = write_model("a", 100)
    Path(f"{path}.xxh3").mkdir()
    (Path(f"{path}.xxh3") / "full").touch()
    with pytest.raises(qml.IoError, match="cannot write") as caught:
        qml.inspect(path).write_checksums()
    assert caught.value.path == Path(f"{path}.xxh3")
    assert sorted(found.name for found in path.parent.iterdir()) == ["a.safetensors", "a.safetensors.xxh3"]


def test_cancel(write_model: WriteModel) -> None:
    checkpoint = qml.inspect(write_model("a", 12 * MIB))
    token = qml.CancelToken()
    token.cancel()
    with pytest.raises(qml.CancelledError):
        checkpoint.write_checksums(cancel=token)
    assert not Path(f"{checkpoint.path}.xxh3").exists()
    checkpoint.write_checksums()
    with pytest.raises(qml.CancelledError):
        checkpoint.verify(cancel=token)
