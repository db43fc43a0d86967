"""Which linear layers of a model read the same input: the query, key and value projections, or a gate and its product.

Nothing names them; they are found by watching one step. Layers of a group can be computed as one.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

LinearGroup = tuple[nn.Linear, ...]


class InputWatch:
    """Watches a model's linear layers from now until ``finish``; they compute what they always do."""

    def __init__(self, modules: nn.Module) -> None:
        self._layers = [module for module in modules.modules() if type(module) is nn.Linear]
        self._calls: list[list[nn.Linear]] = []
        self._input: Tensor | None = None
        for layer in self._layers:
            vars(layer)["forward"] = partial(self._forward, layer)

    def finish(self) -> list[LinearGroup]:
        """Groups in the order in which they ran; layers that did not run exactly once stand alone, at the end."""
        self._input = None
        for layer in self._layers:
            del vars(layer)["forward"]
        times = Counter(layer for call in self._calls for layer in call)
        groups = [tuple(call) for call in self._calls if all(times[layer] == 1 for layer in call)]
        grouped = {layer for group in groups for layer in group}
        return groups + [(layer,) for layer in self._layers if layer not in grouped]

    def _forward(self, layer: nn.Linear, states: Tensor) -> Tensor:
        if states is self._input:
            self._calls[-1].append(layer)
        else:
            self._calls.append([layer])
            self._input = states
        return functional.linear(states, layer.weight, layer.bias)
