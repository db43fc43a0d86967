"""The models of vLLM's experiments, the devices they ran on, and how long their iterations take there.

Latencies are this project's roofline estimates, slowed down as measured (``aegaeon/latency/estimate/roofline.py``). The
KV that fits is the paper's (its table 1: 15.7 k, 9.7 k and 60.1 k tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from aegaeon.core.kv_shape import KvShape
from aegaeon.latency.estimate.architecture import Architecture
from aegaeon.latency.estimate.device_spec import DeviceSpec, device_spec
from aegaeon.latency.estimate.roofline import estimate
from sim.study.paged.step_cost import StepCost
from sim.systems.errors import InputError

BLOCK_TOKENS = 16  # the usual ones
MEMORY_UTIL = 0.95
SWAP_SPACE_BYTES = 20 << 30  # of each device
LINK_EFFICIENCY = 0.8
COPY_S = 6e-6  # assumed: what a copy of a layer's keys, or values, of a block takes at least
KERNEL_TOKENS = 3.7  # attention takes 1 + this / block size times as long: 23 % more at 16, as published (20 to 26 %)

_A100_80 = device_spec("a100")
_A100_40 = replace(_A100_80, name="a100-40gb", memory_bytes=40 * 10**9, memory_bytes_per_s=1.555e12)


@dataclass(frozen=True, slots=True)
class StudiedModel:
    """A model on ``tp`` devices; ``kv_blocks`` of 16 tokens are left for its KV."""

    name: str
    architecture: Architecture
    device: DeviceSpec
    tp: int
    kv_blocks: int

    def shape(self, block_tokens: int) -> KvShape:
        return replace(self.architecture.kv_shape, block_tokens=block_tokens)

    def blocks(self, block_tokens: int, memory_util: float = MEMORY_UTIL) -> int:
        """Blocks of a size that fit, if a share of the devices' memory is used. Raises ``InputError`` for none."""
        shape = self.shape(BLOCK_TOKENS)
        more_bytes = (memory_util - MEMORY_UTIL) * self.device.memory_bytes * self.tp
        tokens = int((self.kv_blocks * shape.block_bytes + more_bytes) // shape.token_bytes)
        if tokens < block_tokens:
            raise InputError(f"--memory-util {memory_util:g} leaves no room for KV beside the weights of {self.name}")
        return tokens // block_tokens

    def host_blocks(self, block_tokens: int) -> int:
        return SWAP_SPACE_BYTES * self.tp // self.shape(block_tokens).block_bytes

    def cost(self, block_tokens: int) -> StepCost:
        """Prompts and decodes of an iteration share one reading of the weights."""
        profile = estimate(self.architecture, self.device, self.tp)
        kernel = (1 + KERNEL_TOKENS / block_tokens) / (1 + KERNEL_TOKENS / BLOCK_TOKENS)
        return StepCost(
            base_s=profile.d0_s,
            prompt_token_s=profile.p1_s,
            pair_s=profile.p2_s,
            decode_sequence_s=profile.d2_s,
            context_token_s=profile.d1_s * kernel,
            swapped_block_s=self.swapped_block_s(block_tokens),
        )

    def swapped_block_s(self, block_tokens: int) -> float:
        """Seconds to copy a block to the host or back: keys and values of every layer on their own."""
        bytes_per_s = LINK_EFFICIENCY * self.device.host_link_bytes_per_s * self.tp
        copies = 2 * self.architecture.layers
        return copies * COPY_S + self.shape(block_tokens).block_bytes / bytes_per_s


def _opt(name: str, layers: int, hidden: int, device: DeviceSpec, tp: int, kv_blocks: int) -> StudiedModel:
    """OPT's feed-forward layers have two matrices of four times the width: as much as three of 8/3."""
    architecture = Architecture(layers, hidden, hidden // 128, hidden // 128, 128, hidden * 8 // 3, 50272, True, 2048)
    return StudiedModel(name, architecture, device, tp, kv_blocks)


_LLAMA_13B = Architecture(40, 5120, 40, 40, 128, 13824, 32000, False, 2048)

MODELS: Mapping[str, StudiedModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            _opt("opt-13b", 40, 5120, _A100_40, 1, 981),
            _opt("opt-66b", 64, 9216, _A100_40, 4, 606),
            _opt("opt-175b", 96, 12288, _A100_80, 8, 3756),
            StudiedModel("llama-13b", _LLAMA_13B, _A100_40, 1, 981),
        )
    }
)
