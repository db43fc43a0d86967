"""Writes the corpus of malformed (and a few odd but right) files that `corpus.rs` and anybody's fuzzer starts from.

    python make_corpus.py

The name of a file says what is the matter with it; those that begin with `ok-` are right.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("corpus")


def tensor(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def file(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A file with a header, whose length may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ONE = {"a": tensor("U8", [4], 0, 4)}
TWICE = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'

FILES = {
    "ok-one": file(ONE, b"1234"),
    "ok-nothing": file({}),
    "ok-padded": file(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}       ', b"1234"),
    "ok-metadata": file({"__metadata__": {"format": "pt"}, **ONE}, b"1234"),
    "ok-unordered": file({"b": tensor("F32", [1], 4, 8), "a": tensor("F16", [2], 0, 4)}, bytes(8)),
    "ok-zero-size": file({"a": tensor("F32", [0, 7], 0, 0), "b": tensor("F32", [], 0, 4)}, bytes(4)),
    "ok-zero-size-huge": file({"a": tensor("F32", [0, 2**32], 0, 0)}),
    "ok-sub-byte": file({"a": tensor("F4", [4], 0, 2), "b": tensor("F6_E2M3", [4], 2, 5)}, bytes(5)),
    "ok-odd-name": file({'\n"\\ \u00fc\U0001f600': tensor("U8", [1], 0, 1)}, b"1"),
    "ok-unknown-key": file({"a": {**tensor("U8", [1], 0, 1), "note": "?"}}, b"1"),
    "empty": b"",
    "length-cut": b"\x02\0\0",
    "length-only": bytes(8),
    "length-zero-data": bytes(8) + b"{}",
    "length-beyond-file": file(b"{}", length=3),
    "length-huge": file(b"{}", length=2**63),
    "length-all-ones": file(b"{}", length=2**64 - 1),
    "length-just-too-long": file(b"{}", length=100_000_001),
    "length-at-limit": file(b"{}", length=100_000_000),
    "length-big-endian": (2).to_bytes(8, "big") + b"{}",
    "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4\n",
    "pickle": b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01K\x01s.",
    "zip": b"PK\x03\x04" + bytes(60),
    "gguf": b"GGUF" + bytes(60),
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "json-cut": file(b'{"a":{"dtype":"U8","sha'),
    "json-array": file(b"[]"),
    "json-text": file(b'"{}"'),
    "json-null": file(b"null"),
    "json-twice": file(b"{}{}"),
    "json-leading-space": file(b" {}"),
    "json-bom": file(b"\xef\xbb\xbf{}"),
    "json-trailing-zero": file(b"{}\0\0\0\0\0\0"),
    "json-comment": file(b"{/* none */}"),
    "json-deep": file(b'{"a":' * 200 + b"1" + b"}" * 200),
    "json-nan": file(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"1"),
    "json-escape": file(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "utf8-invalid": file(b'{"\xff\xfe":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "utf8-overlong": file(b'{"\xc0\x80":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "entry-number": file(b'{"a":1}'),
    "entry-null": file(b'{"a":null}'),
    "entry-empty": file(b'{"a":{}}'),
    "entry-no-dtype": file({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "entry-no-shape": file({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1"),
    "entry-no-offsets": file({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "entry-dtype-twice": file(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "dtype-unknown": file({"a": tensor("F7", [1], 0, 1)}, b"1"),
    "dtype-lower-case": file({"a": tensor("u8", [1], 0, 1)}, b"1"),
    "dtype-number": file({"a": {**tensor("U8", [1], 0, 1), "dtype": 8}}, b"1"),
    "dtype-wrong-size": file({"a": tensor("F32", [4], 0, 4)}, b"1234"),
    "dtype-half-byte": file({"a": tensor("F4", [3], 0, 1)}, b"1"),
    "dtype-half-byte-rounded": file({"a": tensor("F4", [3], 0, 2)}, b"12"),
    "shape-negative": file({"a": tensor("U8", [-1], 0, 1)}, b"1"),
    "shape-fraction": file({"a": tensor("U8", [1.0], 0, 1)}, b"1"),
    "shape-text": file({"a": tensor("U8", ["1"], 0, 1)}, b"1"),
    "shape-overflow": file({"a": tensor("U8", [2**32, 2**32], 0, 0)}),
    "shape-overflow-bits": file({"a": tensor("F64", [2**61], 0, 0)}),
    "shape-overflow-then-zero": file({"a": tensor("U8", [2**63, 4, 0], 0, 0)}),
    "shape-beyond-u64": file({"a": tensor("U8", [2**64], 0, 1)}, b"1"),
    "shape-wrong-product": file({"a": tensor("U8", [2, 3], 0, 4)}, b"1234"),
    "offsets-reversed": file({"a": tensor("U8", [4], 4, 0)}, b"1234"),
    "offsets-negative": file({"a": tensor("U8", [4], -4, 0)}, b"1234"),
    "offsets-one": file({"a": tensor("U8", [4], 0)}, b"1234"),
    "offsets-three": file({"a": tensor("U8", [4], 0, 4, 8)}, b"1234"),
    "offsets-fraction": file({"a": tensor("U8", [4], 0.0, 4.0)}, b"1234"),
    "offsets-beyond-file": file({"a": tensor("U8", [8], 0, 8)}, b"1234"),
    "offsets-at-the-end-of-numbers": file({"a": tensor("U8", [1], 2**64 - 2, 2**64 - 1)}, b"1"),
    "offsets-overlap": file({"a": tensor("U8", [3], 0, 3), "b": tensor("U8", [3], 1, 4)}, b"1234"),
    "offsets-same": file({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 0, 4)}, b"1234"),
    "offsets-inside": file({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [1], 1, 2)}, b"1234"),
    "offsets-hole": file({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 3, 4)}, b"1234"),
    "offsets-hole-first": file({"a": tensor("U8", [3], 1, 4)}, b"1234"),
    "offsets-zero-size-elsewhere": file({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [0], 9, 9)}, b"1234"),
    "data-missing": file(ONE),
    "data-short": file(ONE, b"123"),
    "data-trailing": file(ONE, b"12345"),
    "data-without-tensors": file({}, b"1"),
    "names-twice": file(TWICE, b"12"),
    "metadata-number": file({"__metadata__": {"a": 1}}),
    "metadata-list": file({"__metadata__": []}),
    "metadata-nested": file({"__metadata__": {"a": {}}}),
    "metadata-twice": file(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata-names-twice": file(b'{"__metadata__":{"a":"1","a":"2"}}'),
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (FOLDER / f"{name}.safetensors").write_bytes(content)
