"""What `inspect` finds in files and directories."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import quick_model_loader as qml

from .conftest import WriteFile, entry


def index(directory: Path, weight_map: dict[str, str]) -> Path:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "f8": torch.zeros(3, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = qml.inspect(path)
    assert checkpoint.path == path
    (file,) = checkpoint.files
    assert (file.path, file.bytes, file.metadata) == (path, path.stat().st_size, {"format": "pt"})
    assert checkpoint.file_offsets == (0,)
    assert checkpoint.total_bytes == file.bytes
    assert checkpoint.buffer_bytes == -(-file.bytes // qml.BLOCK_BYTES) * qml.BLOCK_BYTES
    assert set(checkpoint.tensors) == set(tensors)
    with safe_open(path, "pt") as reference:
        for name, tensor in checkpoint.tensors.items():
            assert tensor.name == name
            assert tensor.dtype == reference.get_slice(name).get_dtype()
            assert list(tensor.shape) == reference.get_slice(name).get_shape()
            assert tensor.end - tensor.begin == tensor.nbytes == tensors[name].nbytes
            assert tensor.file == 0
    begins = [tensor.begin for tensor in checkpoint.tensors.values()]
    assert begins == sorted(begins)
    assert begins[0] == file.header_bytes
    assert max(tensor.end for tensor in checkpoint.tensors.values()) == file.bytes


@pytest.mark.parametrize("as_text", [True, False])
def test_a_directory_with_an_index_has_its_shards_only(tmp_path: Path, write_file: WriteFile, as_text: bool) -> None:
    write_file("b.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    write_file("a.safetensors", {"y": entry("U8", [2], 0, 2), "unlisted": entry("U8", [1], 2, 3)}, b"yyu")
    write_file("stray.safetensors", {"x": entry("U8", [1], 0, 1)}, b"?")
    index(tmp_path, {"x": "b.safetensors", "y": "a.safetensors"})
    checkpoint = qml.inspect(str(tmp_path) if as_text else tmp_path)
    assert [file.path.name for file in checkpoint.files] == ["a.safetensors", "b.safetensors"]
    assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == {"y": 0, "unlisted": 0, "x": 1}


@pytest.mark.parametrize("named", ["a.safetensors", "b.safetensors"])
def test_the_last_shard_with_a_tensor_counts_whatever_the_index_says(
    tmp_path: Path, write_file: WriteFile, named: str
) -> None:
    """Transformers reads the shards in the order of their names, and the index only for these."""
    write_file("a.safetensors", {"x": entry("U8", [1], 0, 1), "y": entry("U8", [1], 1, 2)}, b"xy")
    write_file("b.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    index(tmp_path, {"x": named, "y": "a.safetensors", "z": "b.safetensors"})
    assert {name: tensor.file for name, tensor in qml.inspect(tmp_path).tensors.items()} == {"y": 0, "x": 1}


def test_an_index_may_name_tensors_that_no_shard_holds(tmp_path: Path, write_file: WriteFile) -> None:
    write_file("a.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    index(tmp_path, {"x": "a.safetensors", "z": "a.safetensors"})
    assert list(qml.inspect(tmp_path).tensors) == ["x"]


def test_the_single_file_comes_before_the_index(tmp_path: Path, write_file: WriteFile) -> None:
    write_file("a.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    index(tmp_path, {"x": "a.safetensors"})
    single = write_file("model.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    assert [file.path for file in qml.inspect(tmp_path).files] == [single]
    single.rename(tmp_path / "elsewhere")
    single.symlink_to(tmp_path / "gone")
    assert [file.path.name for file in qml.inspect(tmp_path).files] == ["a.safetensors"]


def test_without_an_index_the_single_file_comes_first(tmp_path: Path, write_file: WriteFile) -> None:
    write_file("model.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    write_file("adapter.safetensors", {"x": entry("U8", [1], 0, 1)}, b"x")
    assert [file.path.name for file in qml.inspect(tmp_path).files] == ["model.safetensors"]


def test_without_both_all_files_count_in_the_order_of_their_names(tmp_path: Path, write_file: WriteFile) -> None:
    write_file("2.safetensors", {"b": entry("U8", [1], 0, 1)}, b"x")
    write_file("1.safetensors", {"a": entry("U8", [1], 0, 1)}, b"x")
    (tmp_path / "._1.safetensors").write_bytes(b"what some file managers leave behind")
    (tmp_path / "notes.txt").write_text("nothing")
    checkpoint = qml.inspect(tmp_path)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.file_offsets == (0, qml.BLOCK_BYTES)
    assert checkpoint.buffer_bytes == 2 * qml.BLOCK_BYTES


def test_symlinks_as_in_a_hub_cache(tmp_path: Path, write_file: WriteFile) -> None:
    blob = write_file("blobs/0123abcd", {"a": entry("U8", [1], 0, 1)}, b"x")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    (tmp_path / "link").symlink_to(snapshot)
    checkpoint = qml.inspect(tmp_path / "link")
    assert checkpoint.files[0].path == tmp_path / "link" / "model.safetensors"
    assert list(checkpoint.tensors) == ["a"]


def test_offsets_beyond_four_gib(tmp_path: Path) -> None:
    size = 5 << 30
    path = tmp_path / "sparse.safetensors"
    header = json.dumps({"big": entry("U8", [size], 0, size), "last": entry("I64", [1], size, size + 8)}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size + 8)
    last = qml.inspect(path).tensors["last"]
    assert (last.begin, last.end) == (8 + len(header) + size, 8 + len(header) + size + 8)


def test_what_is_returned_cannot_be_changed(write_file: WriteFile) -> None:
    checkpoint = qml.inspect(write_file("m.safetensors", {"a": entry("U8", [1], 0, 1)}, b"x"))
    tensor = checkpoint.tensors["a"]
    with pytest.raises(TypeError):
        checkpoint.tensors["b"] = tensor  # type: ignore[index]
    with pytest.raises(AttributeError):
        tensor.begin = 0  # type: ignore[misc]
    assert checkpoint.tensors is checkpoint.tensors
    again = qml.inspect(checkpoint.path).tensors["a"]
    assert (tensor, hash(tensor)) == (again, hash(again))
    assert 'name="a"' in repr(tensor)
    assert str(checkpoint.path) in repr(checkpoint)
    assert str(checkpoint.path) in repr(checkpoint.files[0])
