"""What a folder is that is no checkpoint, said by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.checkpoint_folder import FolderError, check_folder

TINY = b"\x02\0\0\0\0\0\0\0{}"  # no tensors
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def write(folder: Path, **files: object) -> None:
    """Files by name, with ``__`` for dots."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(data)


def whole(folder: Path) -> None:
    write(folder, config__json={"model_type": "llama"}, model__safetensors=TINY)


def adapter(folder: Path) -> None:
    write(folder, adapter_config__json={"base_model_name_or_path": "org/base"}, adapter_model__safetensors=TINY)


def adapter_beside_its_base(folder: Path) -> None:
    whole(folder)
    adapter(folder)


def gguf(folder: Path) -> None:
    write(folder, model__gguf=b"GGUF")


def gguf_with_configuration(folder: Path) -> None:
    write(folder, config__json={}, model__gguf=b"GGUF")


def cache_root(folder: Path) -> None:
    for name in ("aaa", "bbb"):
        (folder / "snapshots" / name).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb")


def cache_of_many(folder: Path) -> None:
    (folder / "hub" / "models--org--name").mkdir(parents=True)


def nested(folder: Path) -> None:
    (folder / "inner").mkdir()
    whole(folder / "inner")


def shards_without_index(folder: Path) -> None:
    write(folder, config__json={})
    (folder / "model-00001-of-00002.safetensors").write_bytes(TINY)


def stray_weights(folder: Path) -> None:
    write(folder, config__json={}, consolidated__safetensors=TINY)


def dangling_weights(folder: Path) -> None:
    write(folder, config__json={})
    (folder / "model.safetensors").symlink_to("../../blobs/0123")


def dangling_shard(folder: Path) -> None:
    write(folder, config__json={}, model__safetensors__index__json={"weight_map": {"x": "a.safetensors"}})
    (folder / "a.safetensors").symlink_to("../../blobs/0123")


def looping_weights(folder: Path) -> None:
    write(folder, config__json={})
    (folder / "model.safetensors").symlink_to("model.safetensors")


def dangling_config(folder: Path) -> None:
    write(folder, model__safetensors=TINY)
    (folder / "config.json").symlink_to("../../blobs/0123")


def pipe_for_weights(folder: Path) -> None:
    write(folder, config__json={})
    os.mkfifo(folder / "model.safetensors")


def pipe_for_tokenizer(folder: Path) -> None:
    whole(folder)
    os.mkfifo(folder / "tokenizer.json")


def pipe_for_config(folder: Path) -> None:
    whole(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def endless_config(folder: Path) -> None:
    whole(folder)
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 40)


def deep_config(folder: Path) -> None:
    whole(folder)
    write(folder, config__json=b'{"a":' * 10**5)


def lfs_config(folder: Path) -> None:
    write(folder, config__json=LFS, model__safetensors=LFS)


def lfs_weights(folder: Path) -> None:
    write(folder, config__json={}, model__safetensors=LFS)


def lfs_shard(folder: Path) -> None:
    write(folder, config__json={}, model__safetensors__index__json={"weight_map": {"x": "a.safetensors"}})
    write(folder, a__safetensors=LFS)


def pickled(folder: Path) -> None:
    write(folder, config__json={}, pytorch_model__bin=b"x")


def other_weights_file(folder: Path) -> None:
    whole(folder)
    write(folder, config__json={"transformers_weights": "other.safetensors"}, other__safetensors=TINY)


def makers_own(folder: Path) -> None:
    write(folder, params__json={}, consolidated__safetensors=TINY)


def pipeline(folder: Path) -> None:
    write(folder, model_index__json={})


def nothing(_: Path) -> None:
    """An empty folder."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (adapter, r"is an adapter \(LoRA\) of org/base.* merge it"),
        (adapter_beside_its_base, r"is an adapter \(LoRA\) of org/base"),
        (gguf, "holds GGUF files"),
        (gguf_with_configuration, r"no \*\.safetensors file; model\.gguf is of a format that is not served"),
        (cache_root, r"root of a hub cache; give the snapshot in it: .*/snapshots/bbb"),
        (cache_of_many, r"hub cache of several models \(models--org--name\)"),
        (nested, "has no config.json; is .*/inner meant"),
        (
            shards_without_index,
            r"has shards \(model-00001-of-00002\.safetensors, \.\.\.\) but no model\.safetensors\.index",
        ),
        (stray_weights, r"has consolidated\.safetensors, but weights must be in model\.safetensors"),
        (dangling_weights, r"model\.safetensors is a link to \.\./\.\./blobs/0123, which is not there"),
        (dangling_shard, r"a\.safetensors is a link to \.\./\.\./blobs/0123, which is not there"),
        (looping_weights, r"model\.safetensors is a link to model\.safetensors"),
        (dangling_config, r"config\.json is a link to \.\./\.\./blobs/0123"),
        (pipe_for_weights, r"model\.safetensors is neither a file nor a folder"),
        (pipe_for_tokenizer, r"tokenizer\.json is neither a file nor a folder"),
        (pipe_for_config, r"config\.json is neither a file nor a folder"),
        (endless_config, r"config\.json is larger than 64 MiB"),
        (deep_config, r"config\.json is not usable: its JSON is nested too deeply"),
        (lfs_config, r"config\.json is a Git LFS pointer; run `git lfs pull`"),
        (lfs_weights, r"model\.safetensors is a Git LFS pointer, not weights"),
        (lfs_shard, r"a\.safetensors is a Git LFS pointer, not weights"),
        (pickled, r"pytorch_model\.bin is of a format that is not served"),
        (other_weights_file, r"has its weights in 'other\.safetensors'; only model\.safetensors"),
        (makers_own, r"makers' own format \(params\.json\)"),
        (pipeline, "is a diffusion pipeline"),
        (nothing, "is empty"),
    ],
)
def test_what_it_is_instead(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path)
    with pytest.raises(FolderError, match=says):
        check_folder(tmp_path)


BESIDE = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def large(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 40)


@pytest.mark.parametrize("name", ["config.json", *BESIDE])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_bytes(b"[]"), "is not a JSON object"),
        (lambda file: file.write_bytes(b"5"), "is not a JSON object"),
        (lambda file: file.write_bytes(b""), "is not valid JSON"),
        (lambda file: file.write_bytes(b'{"a": "\xff"}'), "is not valid JSON"),
        (lambda file: file.write_bytes(b'{"a":' * 10**5), "is not usable: its JSON is nested too deeply"),
        (large, "is larger than 64 MiB"),
        (os.mkfifo, "is neither a file nor a folder"),
        (Path.mkdir, "is not a regular file"),
        (lambda file: file.symlink_to("../blobs/0"), r"is a link to \.\./blobs/0, which is not there"),
        (lambda file: file.symlink_to(file.name), "is a link to"),
    ],
    ids=["array", "number", "empty", "bytes", "deep", "large", "pipe", "folder", "dangling", "loop"],
)
def test_what_is_read_beside_the_weights_must_be_what_it_is_for(
    tmp_path: Path, name: str, make: Callable[[Path], None], says: str
) -> None:
    whole(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(FolderError, match=says) as caught:
        check_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_tokenizer_and_a_template_are_there_and_of_a_sane_size(tmp_path: Path, name: str) -> None:
    whole(tmp_path)
    large(tmp_path / name)
    with pytest.raises(FolderError, match=rf"{name} is larger than \d+ MiB"):
        check_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("../blobs/0")
    with pytest.raises(FolderError, match=rf"{name} is a link to"):
        check_folder(tmp_path)


def test_what_leads_to_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name, says in (
        ("link", "is a link to gone, which is not there"),
        ("gone", "does not exist"),
        ("model.gguf", "is a file; GGUF is not served"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(FolderError, match=says):
            check_folder(tmp_path / name)


def test_links_of_a_hub_cache_lead_to_files(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "aaa"
    snapshot.mkdir(parents=True)
    for blob, name, content in (("0", "config.json", b"{}"), ("1", "model.safetensors", TINY)):
        (tmp_path / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert [file.path for file in check_folder(snapshot).files] == [snapshot / "model.safetensors"]


def test_what_is_left_of_training_an_adapter_does_no_harm(tmp_path: Path) -> None:
    whole(tmp_path)
    write(tmp_path, adapter_config__json={})
    check_folder(tmp_path)
