"""Figures 12, 14 and 16: normalised latency over the rate of requests, as far as each system goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from aegaeon.crossing import Crossing, crossing
from sim.study.paged.experiment import SYSTEMS, Experiment
from sim.study.paged.sampling import Sampling

LEVEL_S = 1.0  # per token: where the paper cuts its figures, and systems are compared
POINTS = 5
_MORE_POINTS, _CLOSER_POINTS = 8, 4
_FURTHER = 1.4
_DURATION_S = 600.0

Ends = tuple[float, float]
RatePoint = tuple[float, float]
"""(requests/s, normalised latency in s)."""


@dataclass(frozen=True, slots=True)
class RatePanel:
    """``rates``: the ends of the artifact's sweep, by system."""

    figure: str
    title: str
    model: str
    dataset: str
    sampling: Sampling
    rates: Mapping[str, Ends]
    published: str
    prefix_tokens: int = 0
    warmup_s: float = 0.0

    def latency_s(self, system: str, rate: float) -> float:
        experiment = Experiment(
            system, self.model, self.dataset, rate, _DURATION_S, self.sampling, prefix_tokens=self.prefix_tokens
        )
        return experiment.run().normalized_latency_s(self.warmup_s)

    def curve(self, system: str) -> list[RatePoint]:
        """The artifact's sweep up to where it is above the level, and beyond its ends where that is elsewhere."""
        points = [*self._rising(system)]
        while points[0][1] > LEVEL_S and len(points) < _MORE_POINTS:
            rate = points[0][0] / _FURTHER
            points.insert(0, (rate, self.latency_s(system, rate)))
        for _ in range(_CLOSER_POINTS):
            points = sorted([*points, *self._between(system, points)])
        return points

    def _rising(self, system: str) -> Iterator[RatePoint]:
        rates = [*np.linspace(*self.rates[system], POINTS)]
        rates += [rates[-1] * _FURTHER**step for step in range(1, _MORE_POINTS + 1)]
        for rate in map(float, rates):
            latency_s = self.latency_s(system, rate)
            yield rate, latency_s
            if latency_s > LEVEL_S:
                return

    def _between(self, system: str, points: list[RatePoint]) -> list[RatePoint]:
        """One more point, in the middle of the two where the curve crosses the level."""
        above = next((index for index, (_, latency_s) in enumerate(points) if latency_s > LEVEL_S), 0)
        if not above:
            return []
        rate = (points[above - 1][0] + points[above][0]) / 2
        return [(rate, self.latency_s(system, rate))]


def limit(points: list[RatePoint]) -> Crossing:
    """The rate up to which a system stays below the level."""
    return crossing([(rate, -latency_s) for rate, latency_s in points], level=-LEVEL_S)


def _ends(*rates: Ends) -> dict[str, Ends]:
    return dict(zip(SYSTEMS, rates, strict=False))


def _fig12(title: str, model: str, dataset: str, published: str, *rates: Ends) -> RatePanel:
    return RatePanel("12", title, model, dataset, Sampling(1), _ends(*rates), published)


def _fig14(title: str, sampling: Sampling, published: str, *rates: Ends) -> RatePanel:
    return RatePanel("14", title, "opt-13b", "alpaca", sampling, _ends(*rates), published)


def _fig16(shots: int, prefix_tokens: int, published: str, paged: Ends, oracle: Ends) -> RatePanel:
    title = f"LLaMA-13B, translation, {shots} example{'s' * (shots > 1)}"
    rates = _ends(paged, oracle)
    return RatePanel("16", title, "llama-13b", "wmt16", Sampling(1), rates, published, prefix_tokens, 60.0)


_SHAREGPT, _MANY = "1.7 to 2.7 x oracle, 2.7 to 8 x max", "not told"

PANELS: tuple[RatePanel, ...] = (
    _fig12("OPT-13B, ShareGPT", "opt-13b", "sharegpt", _SHAREGPT, (1.0, 2.0), (0.5, 1.5), (0.25, 0.9), (0.2, 0.75)),
    _fig12("OPT-66B, ShareGPT", "opt-66b", "sharegpt", _SHAREGPT, (0.4, 1.0), (0.2, 0.5), (0.1, 0.35), (0.1, 0.3)),
    _fig12("OPT-175B, ShareGPT", "opt-175b", "sharegpt", _SHAREGPT, (1.5, 3.0), (0.8, 1.8), (0.5, 1.5), (0.25, 1.25)),
    _fig12("OPT-13B, Alpaca", "opt-13b", "alpaca", "1.3 x oracle", (20, 31.5), (15, 24), (7.5, 18), (2, 5)),
    _fig12("OPT-66B, Alpaca", "opt-66b", "alpaca", _MANY, (11, 20), (6, 12), (3, 7), (0.05, 0.25)),
    _fig12("OPT-175B, Alpaca", "opt-175b", "alpaca", "about 1 x oracle", (15, 22), (15, 22), (10, 19), (1.25, 7)),
    _fig14("2 samples", Sampling(2), _MANY, (12.5, 20), (10, 14), (6, 12), (1, 2.5)),
    _fig14("4 samples", Sampling(4), _MANY, (6, 12), (4, 9), (2, 6), (0.1, 1)),
    _fig14("6 samples", Sampling(6), _MANY, (4, 9), (2, 6), (1, 4.5), (0.1, 1)),
    _fig14("beam of 2", Sampling(2, True), _MANY, (10, 19), (6, 11), (3, 9), (0.5, 2)),
    _fig14("beam of 4", Sampling(4, True), _MANY, (6, 11), (3, 6), (1, 4.5), (0.1, 1)),
    _fig14("beam of 6", Sampling(6, True), "2.3 x oracle", (4, 8.5), (1, 4.5), (0.5, 3), (0.1, 1)),
    _fig16(1, 80, "1.67 x oracle", (24, 52), (12, 40)),
    _fig16(5, 340, "3.58 x oracle", (24, 48), (4, 16)),
)
"""What is published of a panel is how many times the baseline's rate vLLM serves at the same latency."""
