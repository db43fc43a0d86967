"""The panels of Figures 11 to 13 and 17, as published and as far as this project goes, and how to simulate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from aegaeon.core.slo import Slo
from aegaeon.run_header import Load

BASE_SLO = Slo()


class Axis(StrEnum):
    """What grows from left to right."""

    MODELS = "models"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class Panel:
    """One attainment plot. Of ``models`` and ``rates`` (requests/s per model) one is swept, the other has one entry.

    ``total_rate``: the axis shows the rate of all models together. ``log``: it is logarithmic.
    """

    spec: str
    figure: str
    models: tuple[int, ...]
    rates: tuple[float, ...]
    inlen_scale: float = 1.0
    outlen_scale: float = 1.0
    slo: Slo = BASE_SLO
    remark: str = ""
    hardware: tuple[str, ...] = ()  # what the simulator is told where it is not 16 H100 and the paper's three models
    total_rate: bool = False
    log: bool = False

    @property
    def axis(self) -> Axis:
        """The quantity that is swept."""
        return Axis.MODELS if len(self.rates) == 1 else Axis.RATE

    @property
    def xs(self) -> tuple[float, ...]:
        """The points of the sweep."""
        return self.models if self.axis is Axis.MODELS else tuple(map(self._x_of_rate, self.rates))

    def _x_of_rate(self, rate: float) -> float:
        return round(rate * self.models[0], 6) if self.total_rate else rate

    @property
    def loads(self) -> tuple[Load, ...]:
        """The loads of the points, in order."""
        pairs = [(models, rate) for models in self.models for rate in self.rates]
        return tuple(Load.of(models, rate, self.inlen_scale, self.outlen_scale) for models, rate in pairs)

    @property
    def x_label(self) -> str:
        """The label of the horizontal axis, with its unit."""
        if self.axis is Axis.MODELS:
            return "number of models"
        return "arrival rate of all models (requests/s)" if self.total_rate else "arrival rate per model (requests/s)"

    @property
    def title(self) -> str:
        """What is held fixed."""
        fixed = f"{self.rates[0]:g} requests/s per model" if self.axis is Axis.MODELS else f"{self.models[0]} models"
        return f"{fixed}{self.remark}"

    @property
    def simulate_arguments(self) -> list[str]:
        """What ``python3 -m sim.simulate`` needs to make its records."""
        arguments = ["--num-models", *map(str, self.models), "--arrival-rate", *(f"{rate:g}" for rate in self.rates)]
        if self.inlen_scale != 1.0:
            arguments += ["--inlen-scale", f"{self.inlen_scale}"]
        if self.outlen_scale != 1.0:
            arguments += ["--outlen-scale", f"{self.outlen_scale}"]
        if self.slo != BASE_SLO:
            arguments += ["--slo", f"ttft={self.slo.ttft_s:g},tpot={self.slo.tpot_s:g}"]
        return [*arguments, *self.hardware]

    def x_of(self, load: Load) -> float | None:
        """Where a load lies in the sweep; None if it is none of it."""
        by_models = self.axis is Axis.MODELS
        fixed, x = (load.rate, load.models) if by_models else (load.models, self._x_of_rate(load.rate))
        expected = self.rates[0] if self.axis is Axis.MODELS else self.models[0]
        same = (load.inlen_scale, load.outlen_scale, fixed) == (self.inlen_scale, self.outlen_scale, expected)
        return x if same and self.xs[0] <= x <= self.xs[-1] else None

    def requests_per_s(self, x: float) -> float:
        """Arrivals of all models together at a point of the sweep."""
        return x if self.total_rate else x * (self.rates[0] if self.axis is Axis.MODELS else self.models[0])


DIGITS: Mapping[Axis, int] = MappingProxyType({Axis.MODELS: 0, Axis.RATE: 2})  # decimals worth writing
MODELS_AT_LOW_RATE = tuple(range(16, 81, 4))
MODELS_AT_HIGH_RATE = tuple(range(16, 55, 2))
RATES = tuple(step / 20 for step in range(1, 15))

_PANELS = (
    Panel("0.1", "Figure 11(a)", MODELS_AT_LOW_RATE, (0.1,)),
    Panel("0.5", "Figure 11(b)", MODELS_AT_HIGH_RATE, (0.5,)),
    Panel("40", "Figure 11(c)", (40,), RATES),
    Panel("0.1-ix2", "Figure 12(a)", MODELS_AT_LOW_RATE, (0.1,), inlen_scale=2.0, remark=", inputs x 2"),
    Panel("0.1-ox2", "Figure 12(b)", MODELS_AT_LOW_RATE, (0.1,), outlen_scale=2.0, remark=", outputs x 2"),
    Panel("0.5-ix2", "Figure 12(c)", MODELS_AT_HIGH_RATE, (0.5,), inlen_scale=2.0, remark=", inputs x 2"),
    Panel("0.5-ox2", "Figure 12(d)", MODELS_AT_HIGH_RATE, (0.5,), outlen_scale=2.0, remark=", outputs x 2"),
    Panel("slo0.5", "Figure 13(a)", MODELS_AT_LOW_RATE, (0.1,), slo=BASE_SLO.scaled(0.5), remark=", SLOs x 0.5"),
    Panel("slo0.3", "Figure 13(b)", MODELS_AT_LOW_RATE, (0.1,), slo=BASE_SLO.scaled(0.3), remark=", SLOs x 0.3"),
)
PANELS: Mapping[str, Panel] = MappingProxyType({panel.spec: panel for panel in _PANELS})
"""As published: the sweeps of the artifact."""

_FAR_AT_LOW_RATE = (16, 32, 48, 64, 80, 96, 128, 160, 192, 208, 224, 240)
_FAR_AT_HIGH_RATE = (16, 20, 24, 32, 48, 64, 96, 128, 144, 160, 176)
_FAR_RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
_FAR_SPECS = ("0.1", "0.5", "40", "0.1-ix2", "0.1-ox2", "slo0.5", "slo0.3")
_FAR_POOL = ("--nodes", "2", "--seed", "2")  # slack was tuned on other seeds


def _far(panel: Panel) -> Panel:
    """The panel as far as this project's policy goes, and somewhat beyond: in a pool of two nodes, as published."""
    if panel.axis is Axis.RATE:
        return replace(panel, figure=FAR, rates=_FAR_RATES, hardware=_FAR_POOL, log=True)
    models = _FAR_AT_LOW_RATE if panel.rates == (0.1,) else _FAR_AT_HIGH_RATE
    return replace(panel, figure=FAR, models=models, hardware=_FAR_POOL)


FAR = "This project"
FAR_PANELS: Mapping[str, Panel] = MappingProxyType({spec: _far(PANELS[spec]) for spec in _FAR_SPECS})
"""What this project does."""

A10_HARDWARE = ("--devices", "4xa10", "--mix", "qwen2.5-7b", "yi-1.5-6b")
TP4_HARDWARE = ("--devices", "8xh100", "--mix", "qwen2.5-72b-tp4")
A10_PANELS = tuple(
    Panel("a10", "Figure 17(a)", tuple(range(4, 11)), (0.1,), slo=Slo(5.0, tpot_s), hardware=A10_HARDWARE)
    for tpot_s in (0.2, 0.1, 0.05)
)
TP4_PANELS = tuple(
    Panel(
        "tp4",
        "Figure 17(b)",
        (4,),
        tuple(n / 10 for n in range(1, 7)),
        slo=Slo(ttft_s, 0.2),
        hardware=TP4_HARDWARE,
        total_rate=True,
    )
    for ttft_s in (20.0, 10.0, 5.0)
)
