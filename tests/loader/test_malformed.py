"""Files that lie: each is a specific error that names the file, and the tensor where there is one."""

import errno
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

import quick_model_loader as qml

from .conftest import WriteFile, entry

INDEX = "model.safetensors.index.json"

HEADERS: dict[str, tuple[Any, bytes, type[qml.LoaderError], str | None, str]] = {
    # name: header, data, exception, tensor, part of the message
    "no brace": (b" {}", b"", qml.HeaderError, None, "does not begin with"),
    "no header": (b"", b"", qml.HeaderError, None, "does not begin with"),
    "not json": (b'{"a":', b"", qml.HeaderError, None, "EOF"),
    "not utf-8": (b'{"\xff":1}', b"", qml.HeaderError, None, "UTF-8"),
    "two values": (b"{}{}", b"", qml.HeaderError, None, "trailing"),
    "not an object": ({"a": 1}, b"", qml.HeaderError, "a", "invalid type"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x", qml.HeaderError, "a", "dtype"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x", qml.HeaderError, "a", "shape"),
    "no offsets": ({"a": {"dtype": "U8", "shape": [1]}}, b"x", qml.HeaderError, "a", "data_offsets"),
    "unknown dtype": ({"a": entry("F7", [1], 0, 1)}, b"x", qml.HeaderError, "a", "F7"),
    "negative extent": ({"a": entry("U8", [-1], 0, 1)}, b"x", qml.HeaderError, "a", "-1"),
    "fractional extent": ({"a": {**entry("U8", [], 0, 1), "shape": [1.5]}}, b"x", qml.HeaderError, "a", "1.5"),
    "extent too large": ({"a": {**entry("U8", [2**64], 0, 1)}}, b"x", qml.HeaderError, "a", "invalid"),
    "overflowing shape": ({"a": entry("U8", [2**32, 2**32], 0, 1)}, b"x", qml.HeaderError, "a", "overflows"),
    "overflowing bits": ({"a": entry("F64", [2**60], 0, 1)}, b"x", qml.HeaderError, "a", "overflows"),
    "half a byte": ({"a": entry("F4", [3], 0, 1)}, b"x", qml.HeaderError, "a", "whole bytes"),
    "reversed": ({"a": entry("U8", [1], 1, 0)}, b"x", qml.HeaderError, "a", "before they begin"),
    "negative offset": ({"a": entry("U8", [1], -1, 0)}, b"x", qml.HeaderError, "a", "-1"),
    "wrong size": ({"a": entry("F32", [2], 0, 7)}, b"1234567", qml.HeaderError, "a", "takes 8"),
    "hole at the start": ({"a": entry("U8", [1], 1, 2)}, b"xx", qml.HeaderError, "a", "hole"),
    "hole": ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"xxx", qml.HeaderError, "b", "hole"),
    "overlap": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"xxx", qml.HeaderError, "b", "inside"),
    "trailing bytes": ({"a": entry("U8", [1], 0, 1)}, b"xy", qml.HeaderError, None, "1 bytes follow"),
    "truncated": ({"a": entry("U8", [2], 0, 2)}, b"x", qml.TruncatedError, "a", "truncated"),
    "absurd": ({"a": entry("U8", [2**60], 0, 2**60)}, b"x", qml.TruncatedError, "a", "truncated"),
    "duplicate": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        qml.HeaderError,
        "a",
        "twice",
    ),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", qml.HeaderError, "__metadata__", "invalid type"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", qml.HeaderError, None, ""),
}


@pytest.mark.parametrize("case", HEADERS)
def test_malformed_headers(write_file: WriteFile, case: str) -> None:
    header, data, exception, tensor, message = HEADERS[case]
    path = write_file("model.safetensors", header, data)
    with pytest.raises(exception) as caught:
        qml.inspect(path.parent)
    assert type(caught.value) is exception
    assert caught.value.path == path
    assert caught.value.tensor == tensor
    assert caught.value.errno is None
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "exception", "message"),
    [
        (b"", qml.HeaderError, "has 0 bytes"),
        (b"1234567", qml.HeaderError, "has 7 bytes"),
        (b"\x10" + bytes(7) + b"{}", qml.TruncatedError, "24 bytes expected, 10 there"),
        ((2**63).to_bytes(8, "little") + b"{}", qml.HeaderError, "the format allows 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\n", qml.HeaderError, "not a safetensors file"),
    ],
)
def test_files_without_a_header(tmp_path: Path, content: bytes, exception: type[qml.LoaderError], message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(exception, match=message) as caught:
        qml.inspect(path)
    assert caught.value.path == path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=2), cut=st.integers(0, 250))
def test_damaged_files_are_refused_whenever_safetensors_refuses_them(
    write_file: WriteFile, damage: list[tuple[int, int]], cut: int
) -> None:
    path = write_file("m.safetensors", {"a": entry("F32", [2, 3], 0, 24), "b": entry("F16", [2], 24, 28)}, bytes(28))
    content = bytearray(path.read_bytes())
    for place, byte in damage:
        content[place % len(content)] = byte
    path.write_bytes(content[: len(content) - cut] if cut < 20 else content)
    try:
        with safe_open(path, "np") as reference:
            names = set(reference.keys())
    except (SafetensorError, OSError):
        with pytest.raises(qml.LoaderError):
            qml.inspect(path)
    else:
        try:
            assert set(qml.inspect(path).tensors) == names
        except qml.HeaderError as error:
            assert "twice" in str(error) or "begin with" in str(error)  # noqa: PT017


def tiny(write_file: WriteFile, name: str, tensor: str) -> Path:
    return write_file(name, {tensor: entry("U8", [1], 0, 1)}, b"x")


@pytest.mark.parametrize(
    ("text", "exception", "tensor", "message"),
    [
        (b"{", qml.IndexFileError, None, "EOF"),
        (b"\xff", qml.IndexFileError, None, "expected value"),
        (b"{}", qml.IndexFileError, None, "weight_map"),
        (b'{"weight_map": []}', qml.IndexFileError, None, "an object"),
        (b'{"weight_map": {}}', qml.IndexFileError, None, "no tensors"),
        (b'{"weight_map": {"a": 1}}', qml.IndexFileError, None, "a string"),
        (b'{"weight_map": {"a": "x", "a": "x"}}', qml.IndexFileError, "a", "twice"),
        (b'{"weight_map": {"a": "../x"}}', qml.IndexFileError, "a", "plain path"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', qml.IndexFileError, "a", "plain path"),
        (b'{"weight_map": {"a": "./x.safetensors"}}', qml.IndexFileError, "a", "plain path"),
    ],
)
def test_malformed_indices(
    tmp_path: Path, text: bytes, exception: type[qml.LoaderError], tensor: str | None, message: str
) -> None:
    path = tmp_path / INDEX
    path.write_bytes(text)
    with pytest.raises(exception, match=message) as caught:
        qml.inspect(tmp_path)
    assert (caught.value.path, caught.value.tensor) == (path, tensor)


def test_a_missing_shard(tmp_path: Path, write_file: WriteFile) -> None:
    tiny(write_file, "1.safetensors", "a")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(qml.MissingShardError, match=INDEX) as caught:
        qml.inspect(tmp_path)
    assert caught.value.path == tmp_path / "2.safetensors"


def test_an_index_that_is_no_file_or_endless(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(qml.NotACheckpointError, match="not a regular file"):
        qml.inspect(tmp_path)
    (tmp_path / INDEX).unlink()
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(qml.IndexFileError, match=r"it has \d+ bytes"):
        qml.inspect(tmp_path)


def test_two_shards_with_one_tensor(tmp_path: Path, write_file: WriteFile) -> None:
    first, second = tiny(write_file, "1.safetensors", "a"), tiny(write_file, "2.safetensors", "a")
    with pytest.raises(qml.DuplicateError, match=str(first)) as caught:
        qml.inspect(tmp_path)
    assert (caught.value.path, caught.value.tensor) == (second, "a")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_shard_under_two_names(tmp_path: Path, write_file: WriteFile, link: Any) -> None:
    first = tiny(write_file, "1.safetensors", "a")
    link(first, tmp_path / "2.safetensors")
    with pytest.raises(qml.DuplicateError, match="listed twice"):
        qml.inspect(tmp_path)


def test_paths_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(qml.NotACheckpointError, match="holds no"):
        qml.inspect(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(qml.NotACheckpointError, match="not a regular file") as caught:
        qml.inspect(tmp_path)
    assert caught.value.path == tmp_path / "model.safetensors"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.safetensors"))
        for path in (tmp_path / "pipe.safetensors", tmp_path / "s.safetensors", Path("/dev/zero")):
            with pytest.raises(qml.NotACheckpointError, match="not a regular file"):
                qml.inspect(path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nowhere/at/all", errno.ENOENT),
        ("/etc/passwd/model.safetensors", errno.ENOTDIR),
        ("a" * 5000, errno.ENAMETOOLONG),
    ],
)
def test_the_operating_systems_refusals_are_os_errors_too(path: str, code: int) -> None:
    with pytest.raises(qml.IoError) as caught:
        qml.inspect(path)
    assert isinstance(caught.value, OSError)
    assert (caught.value.errno, caught.value.filename, caught.value.path) == (code, path, Path(path))


def test_errors_travel_between_processes(write_file: WriteFile) -> None:
    for path in (write_file("m.safetensors", {"a": entry("U8", [1], 1, 2)}, b"xx"), Path("/nowhere")):
        with pytest.raises(qml.LoaderError) as caught:
            qml.inspect(path)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (type(copy), str(copy), vars(copy)) == (type(caught.value), str(caught.value), vars(caught.value))
        assert copy.errno == caught.value.errno


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError):
        qml.inspect(7)  # type: ignore[arg-type]
    with pytest.raises(qml.IoError):
        qml.inspect("nul\0byte")
