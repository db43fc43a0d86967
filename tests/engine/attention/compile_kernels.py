"""Run as a script: compiles the attention kernels for a GPU that is not there, and prints the size of each binary."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aegaeon.engine.attention import triton_kernels

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = dict.fromkeys(("tables", "tile_lanes", "tile_rows", "tile_tokens", "tile_positions"), "*i64")
PARTS = dict.fromkeys(("part_output", "part_max", "part_sum"), "*fp32")
NUMBERS = {"table_width": "i32", "scaling": "fp32", "softcap": "fp32", "reach_tokens": "i32"}
SHAPE = {"KV_HEADS": 4, "GROUP": 7, "ROW_HEADS": 8}


def compiled_bytes(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> int:
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    known = {(names.index(name),): value for name, value in constants.items()}
    return len(triton.compile(ASTSource(kernel, signature=signature, constexprs=known), target=HOPPER).asm["cubin"])


def attend(rows: int, splits: int, reach: int, extras: bool, key_size: int = 128, value_size: int = 128) -> int:
    types = POINTERS | PARTS | NUMBERS | dict.fromkeys(("query", "keys", "values", "output", "sinks"), "*bf16")
    sizes = {"KEY_SIZE": key_size, "VALUE_SIZE": value_size, "KEY_LANES": 256 if key_size > 128 else 128}
    blocks = {"BLOCK_TOKENS": 16, "UNIT": 64, "ROWS": rows, "COLUMNS": 64, "VALUE_LANES": 128, "PRECISION": "tf32"}
    flags = {"SPLITS": splits, "REACH": reach, "HAS_CAP": extras, "HAS_SINKS": extras}
    return compiled_bytes(triton_kernels.attend_tiles, types, SHAPE | sizes | blocks | flags)


def join() -> int:
    types = PARTS | {"output": "*bf16", "tile_rows": "*i64", "tile_tokens": "*i64"}
    constants = SHAPE | {"VALUE_SIZE": 128, "ROWS": 16, "VALUE_LANES": 128, "SPLITS": 8}
    return compiled_bytes(triton_kernels.join_parts, types, constants)


if __name__ == "__main__":
    print(attend(16, 8, triton_kernels.FULL, extras=False))
    print(attend(64, 1, triton_kernels.WINDOW, extras=True))
    print(attend(16, 1, triton_kernels.CHUNK, extras=False, key_size=192))
    print(join())
