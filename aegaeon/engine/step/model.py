"""One model of an engine: modules built once without memory, and bound to weights that lie elsewhere.

Binding makes no copy: parameters become views of the tensors given. The first time installs parameters of the right
device, later ones only point them elsewhere, so a switch takes well under a millisecond for hundreds of tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aegaeon.engine.architecture.buffers import fill_computed_buffers, move_computed_buffers
from aegaeon.engine.architecture.building import building
from aegaeon.engine.architecture.rope import pin
from aegaeon.engine.architecture.skeleton import architecture, build_skeleton, cache_name, float_dtype, load_config
from aegaeon.engine.attention.attention import PagedAttention
from aegaeon.engine.attention.state_cache import StateCache
from aegaeon.engine.checkpoint.safetensors_file import PADDING_PREFIX
from aegaeon.engine.checkpoint.unused import unused_tensors
from aegaeon.engine.errors import ModelError, UnsupportedModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a weight must be like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Place:
    """A module's attribute that holds a weight."""

    module: nn.Module
    attribute: str
    is_parameter: bool


@dataclass(slots=True)
class _Slot:
    """A weight: the names it may have (more than one where it is tied), what it is like, where it goes."""

    names: tuple[str, ...]
    spec: TensorSpec
    places: tuple[_Place, ...]
    held: Tensor | None = None


class Model:
    """The modules of a model directory. Raises ``UnsupportedModelError`` where they cannot be built.

    ``dtype``: a name such as ``bfloat16``, by default the configuration's. ``max_context_tokens`` matters only to
    rotary embeddings that depend on it. ``device``: where its weights will be. All weights that are ever bound must
    have the same values.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str | None = None,
        max_context_tokens: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        config = load_config(path)
        self.path = path
        self.architecture = architecture(config)
        self.dtype = float_dtype(path, config, dtype)
        self.vocab_size: int = config.get_text_config().vocab_size
        self._bound = False
        self._known_extras: set[str] = set()
        self._addresses: tuple[int, ...] = ()
        with building():
            self.modules: Any = build_skeleton(path, config, self.dtype)
            self._slots = tuple(_slots(self.modules))
            self._names = frozenset(name for slot in self._slots for name in slot.names)
            if unknown := fill_computed_buffers(self.modules):
                raise UnsupportedModelError(path, self.architecture, f"nothing computes its buffer {unknown[0]}")
            limit = max_context_tokens or getattr(config.get_text_config(), "max_position_embeddings", None) or 1
            pin(self.modules, limit)
        self._cache_name = cache_name(self.modules)
        if device is not None:
            move_computed_buffers(self.modules, device)

    @property
    def bound(self) -> bool:
        """Whether it has weights and can run."""
        return self._bound

    @property
    def addresses(self) -> tuple[int, ...]:
        """The addresses of the weights, or those that they had when they were bound last."""
        return self._addresses

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The weights that ``bind`` needs, by their first name."""
        return {slot.names[0]: slot.spec for slot in self._slots}

    def bind(self, weights: Mapping[str, Tensor]) -> None:
        """Let the model use these weights from now on; they are not copied, and must stay until ``unbind``.

        A tied weight may come under any of its names. Tensors that the model has no place for are left alone where that
        does no harm. Raises ``ModelError`` naming the tensor if one is missing, does not fit or would be left out
        though it matters; nothing changes then.
        """
        found = [self._find(slot, weights) for slot in self._slots]
        self._check_extras(weights)
        for slot, tensor in zip(self._slots, found, strict=True):
            if slot.held is None:
                slot.held = _install(slot, tensor)
            else:
                slot.held.data = tensor
        self._bound = True
        self._addresses = tuple(tensor.data_ptr() for tensor in found)

    def unbind(self) -> None:
        """Drop every reference to the weights; ``bind`` brings the model back."""
        self._bound = False
        for slot in self._slots:
            if slot.held is not None:
                slot.held.data = torch.empty(0, dtype=slot.spec.dtype, device=slot.held.device)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        paged: PagedAttention,
        cache: StateCache | None = None,
    ) -> Tensor:
        """Logits ``[rows, vocabulary]`` of a packed batch, at ``logit_rows``; tokens and positions are ``[1, T]``.

        With a ``cache`` that has the states of several sequences each has one token, and takes a row of its own.
        """
        if not self._bound:
            raise ModelError(f"{self.path} has no weights bound")
        packed = len(token_ids) == 1
        output = self.modules(
            input_ids=token_ids,
            position_ids=positions,
            use_cache=cache is not None,
            logits_to_keep=logit_rows if packed else 0,
            paged=paged,
            **({} if cache is None else {self._cache_name: cache}),
        )
        logits: Tensor = output.logits.flatten(0, 1)
        return logits if packed and len(logits) == len(logit_rows) else logits[logit_rows]

    def _find(self, slot: _Slot, weights: Mapping[str, Tensor]) -> Tensor:
        name = next((name for name in slot.names if name in weights), None)
        if name is None:
            raise ModelError(f"{self.path}: the weight {slot.names[0]} is missing")
        tensor, spec = weights[name], slot.spec
        if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
            raise ModelError(
                f"{self.path}: the weight {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the model wants {spec.dtype} {list(spec.shape)}"
            )
        return tensor

    def _check_extras(self, weights: Mapping[str, Tensor]) -> None:
        """Files may have been replaced since the gate looked at them, and with them what has no place in the model."""
        extras = {name for name in weights if name not in self._names and not name.startswith(PADDING_PREFIX)}
        if extras == self._known_extras:
            return
        if unused := unused_tensors(self.modules, weights, extras):
            raise ModelError(f"{self.path}: the model has no place for {unused[0]}, and would be another one without")
        self._known_extras = extras
        if extras:
            logger.warning("%s: %d tensors are not used, first %s", self.path, len(extras), min(extras))


def _slots(modules: Any) -> Iterator[_Slot]:
    """The distinct parameters and persistent buffers, in the order of the modules."""
    names: dict[int, list[str]] = {}
    tensors = modules.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for same in names.values():
        tensor = tensors[same[0]]
        yield _Slot(tuple(same), TensorSpec(tuple(tensor.shape), tensor.dtype), tuple(_places(modules, same)))


def _places(modules: nn.Module, names: list[str]) -> Iterator[_Place]:
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = modules.get_submodule(owner)
        yield _Place(module, attribute, attribute in module._parameters)


def _install(slot: _Slot, tensor: Tensor) -> Tensor:
    """Put one that holds the weight in the places of the meta tensor, all of them where it is tied."""
    is_parameter = slot.places[0].is_parameter
    held: Tensor = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor.view_as(tensor)
    for place in slot.places:
        owner: dict[str, Any] = place.module._parameters if place.is_parameter else place.module._buffers
        owner[place.attribute] = held
    return held
