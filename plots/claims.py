"""Our figures beside the published claims, as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from aegaeon.crossing import Crossing
from aegaeon.metrics import Metric
from aegaeon.run_header import Origin
from plots.curves.bounds import Bounds
from plots.curves.curve import Curve
from plots.curves.outcome import Distribution
from plots.draw.cdf import duration
from plots.draw.style import SYSTEMS, model_name, system_name
from sim.panels import DIGITS, Axis, Panel

OURS = "aegaeon"
OTHERS = ("sllm", "sllm+", "muxserve")
RATE_SPECS = ("0.1", "0.5", "40")  # Figure 11: arrivals grow with the models, or with the rate
TIGHT_SPECS = ("slo0.5", "slo0.3")  # Figure 13

INTRODUCTION = """\
# Claims

Written by `make figures`, from simulations: nothing here was measured unless it says so. Every number can be read off a
figure. A curve's *crossing* is the load at which it first falls below 90 %, interpolated between the points beside it;
`>` and `<` say that the sweep ends before it does, or begins after. Two metrics are told apart: `qos` is the share of
service time on target, which is what the published plots show, `slo_attainment` the share of tokens produced by their
due time. Requests that were dropped count 0 in both.
"""
PAPER = """\
## The paper, reproduced

What the paper compares, with the constants and decisions of its artifact (`--compat artifact`); figures in
`plots/figures/paper`.
"""
READING = """\
How the claims are read here: the arrival rate is at the crossings of Figure 11, where it grows; the goodput, requests/s
at 90 %, at those of Figures 11 to 13; the published 9 may also be the share on time of two systems under the same load.
MuxServe takes no more models than it finds room for: its last point counts as its crossing. `-` stands where neither
system falls below 90 % within the sweep, or one takes none of its loads.
"""
ORDER = """\
In the published Figure 13 Aegaeon stays ahead of ServerlessLLM however tight the targets are, and MuxServe ends at 32
models. Ours, from the load at 90 %, the highest first:
"""
ARTIFACT = """\
`qos` of the artifact's own simulator on its published workloads, beside ours on workloads generated alike (with other
arrivals and lengths; on the published ones see [docs/simulator.md](../docs/simulator.md)):
"""
ARTIFACT_QOS = (  # models, rate, Aegaeon, ServerlessLLM
    *((16, 0.1, 1.000, 1.000), (32, 0.1, 1.000, 0.925), (48, 0.1, 0.998, 0.825)),
    *((64, 0.1, 0.962, 0.610), (72, 0.1, 0.911, 0.535), (80, 0.1, 0.881, 0.485)),
    *((16, 0.5, 1.000, 0.969), (32, 0.5, 0.995, 0.348), (48, 0.5, 0.903, 0.216)),
)
SWITCHES = """\
Mean and 99th percentile of the time that a switch keeps a turn waiting for its model, at 80 models x 0.1 requests/s.
The published 97 % compares with a switch that starts its engine anew, which no system simulated here does:
ServerlessLLM loads weights over the same link as Aegaeon, without prefetching them.
"""
PROJECT = """\
## What this project does

The same workloads with other seeds, as far as it goes, on two nodes with today's constants (50 GB/s for weights and KV,
2 TB of host memory a node), by `slo_attainment`; figures in `plots/figures`. Beyond the *bound* no policy at all can
keep every deadline (`sim/study/bound.py`); at 90 % on time a policy may be beyond it. Aegaeon is as published, 3
devices of 8 for prefill; [docs/experiments/slack.md](../docs/experiments/slack.md) has its best splits, other markets
and more seeds.
"""

SwitchTimes = Mapping[str, Mapping[str, Distribution]]


@dataclass(frozen=True, slots=True)
class Result:
    """A panel and its simulated curves by policy."""

    panel: Panel
    curves: Mapping[str, Curve]
    bound: Crossing | None = None

    @classmethod
    def of(cls, panel: Panel, curves: Sequence[tuple[str, Curve]], bound: Crossing | None = None) -> Result:
        """The result of what was drawn, leaving out what was measured."""
        simulated = {policy: curve for policy, curve in curves if curve.source.origin is Origin.SIMULATED}
        return cls(panel, simulated, bound)

    def bounds(self, policy: str) -> Bounds | None:
        """The load at 90 %; None if the system has no curve."""
        curve = self.curves.get(policy)
        return Bounds.of(curve.crossing, known_end=bool(curve.end)) if curve else None

    def share_ratios(self, other: str) -> list[tuple[float, float]]:
        """(x, our share over another system's) at loads that both were given and the other one bore at all."""
        if OURS not in self.curves or other not in self.curves:
            return []
        ours, theirs = dict(self.curves[OURS].points), self.curves[other].points
        return [(x, ours[x] / share) for x, share in theirs if share > 0 and x in ours]

    def ratio(self, other: str, ours: str = OURS) -> Bounds | None:
        """The load at 90 % of one system over another's."""
        ours_at, theirs = self.bounds(ours), self.bounds(other)
        return ours_at.over(theirs) if ours_at and theirs else None


def claims_page(
    results: Mapping[Metric, Sequence[Result]], switch_s: SwitchTimes, project: Sequence[Result] = ()
) -> str:
    """The page. ``results``: the paper's figures; ``switch_s``: times of switches by policy and model."""
    lines = [INTRODUCTION, PAPER, f"All systems: {_sources(results)}.", ""]
    lines += [*_comparison(results, switch_s), "", READING]
    for metric, panels in results.items():
        lines += [f"### 90 % by `{metric}`", "", *_crossings(panels), ""]
    for metric, panels in results.items():
        tight = [result for result in panels if result.panel.spec in TIGHT_SPECS]
        lines += [f"### The order in Figure 13, `{metric}`", "", ORDER, *map(_order, tight), ""] if tight else []
    lines += ["### Beside the artifact's simulator", "", ARTIFACT, *_beside_artifact(results.get(Metric.QOS, ())), ""]
    lines += ["### Switches", "", SWITCHES, *_switches(switch_s), ""]
    if project:
        lines += [PROJECT, *_project(project), ""]
    return "\n".join(lines)


def _order(result: Result) -> str:
    """A line of a list."""
    found = {policy: bounds for policy in SYSTEMS if (bounds := result.bounds(policy))}
    ordered = sorted(found, key=lambda policy: -found[policy].low)
    names = [f"{system_name(policy)} ({found[policy].text(0)})" for policy in ordered]
    return f"- {result.panel.figure}, {result.panel.title}: {', '.join(names)}"


def _beside_artifact(results: Sequence[Result]) -> Iterator[str]:
    by_rate = {result.panel.rates[0]: result for result in results if result.panel.spec in RATE_SPECS[:2]}
    yield from _header(
        ["models x requests/s", *(f"{name}, {whose}" for name in _PAIR for whose in ("artifact", "ours"))]
    )
    for models, rate, *published in ARTIFACT_QOS:
        cells = []
        for value, policy in zip(published, _PAIR.values(), strict=True):
            curve = by_rate[rate].curves.get(policy) if rate in by_rate else None
            ours = dict(curve.points).get(models) if curve else None
            cells += [f"{value:.3f}", "-" if ours is None else f"{ours:.3f}"]
        yield _row([f"{models} x {rate:g}", *cells])


_PAIR: Mapping[str, str] = MappingProxyType({"Aegaeon": OURS, "ServerlessLLM": "sllm"})


def _project(results: Sequence[Result]) -> Iterator[str]:
    """A row per panel: loads at 90 %, the bound, and how much further than the paper's policy."""
    policies = [policy for policy in SYSTEMS if any(policy in result.curves for result in results)]
    yield from _header(["sweep", "load", *map(system_name, policies), "bound", "this project / Aegaeon"])
    for result in results:
        digits = DIGITS[result.panel.axis]
        loads = [_text(result.bounds(policy), digits) for policy in policies]
        bound = _text(Bounds.of(result.bound) if result.bound else None, digits)
        yield _row([result.panel.title, _unit(result.panel), *loads, bound, _text(result.ratio(OURS, "slack"), 1)])


def _unit(panel: Panel) -> str:
    return "models" if panel.axis is Axis.MODELS else "requests/s per model"


def _sources(results: Mapping[Metric, Sequence[Result]]) -> str:
    """What the curves were simulated on, usually the same for all."""
    curves = [curve for panels in results.values() for result in panels for curve in result.curves.values()]
    return "; ".join(sorted({str(curve.source) for curve in curves}))


def _comparison(results: Mapping[Metric, Sequence[Result]], switch_s: SwitchTimes) -> Iterator[str]:
    metrics = list(results)
    yield from _header(["claim (Aegaeon, SOSP'25)", "published", *(f"ours, `{metric}`" for metric in metrics)])
    for other in OTHERS:
        rates = [_range([r for r in results[m] if r.panel.spec in RATE_SPECS], other) for m in metrics]
        yield _row([f"arrival rate over {system_name(other)}", "2 - 2.5 x", *rates])
    for other in OTHERS:
        goodput = [_range(results[metric], other) for metric in metrics]
        yield _row([f"goodput over {system_name(other)}", "1.5 - 9 x", *goodput])
    for other in OTHERS:
        shares = [_largest(results[metric], other) for metric in metrics]
        yield _row([f"share on time at one load over {system_name(other)}, largest", "1.5 - 9 x", *shares])
    yield _row(["less scaling overhead", "97 %", *[_saving(switch_s)] * len(metrics)])


def _largest(results: Sequence[Result], other: str) -> str:
    """Where our share over another system's, at the same load, is largest."""
    ratios = [(ratio, x, result.panel) for result in results for x, ratio in result.share_ratios(other)]
    if not ratios:
        return "-"
    ratio, x, panel = max(ratios, key=lambda found: found[0])
    return f"{ratio:.1f} x ({panel.figure}, {x:g})"


def _range(results: Sequence[Result], other: str) -> str:
    """The least ratio and the largest, over panels."""
    ratios = [ratio for result in results if (ratio := result.ratio(other)) and ratio.text(1) != "-"]
    if not ratios:
        return "-"
    texts = [min(ratios, key=lambda ratio: ratio.low).text(1), max(ratios, key=lambda ratio: ratio.low).text(1)]
    return " to ".join(dict.fromkeys(texts)) + " x"


def _saving(switch_s: SwitchTimes) -> str:
    """Over kinds of models: how much less of a switch is waited for."""
    ours, theirs = switch_s.get(OURS, {}), switch_s.get("sllm", {})
    saved = [1 - ours[kind].mean / theirs[kind].mean for kind in sorted(ours.keys() & theirs.keys())]
    if not saved:
        return "-"
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(saved), max(saved)))) + " over ServerlessLLM"


def _switches(switch_s: SwitchTimes) -> Iterator[str]:
    policies = [policy for policy in SYSTEMS if switch_s.get(policy)]
    kinds = sorted({kind for times in switch_s.values() for kind in times})
    yield from _header(["model", *map(system_name, policies)])
    for kind in kinds:
        times = [switch_s[policy].get(kind) for policy in policies]
        yield _row(
            [model_name(kind), *(f"{duration(t.mean)} / {duration(t.quantile(0.99))}" if t else "-" for t in times)]
        )


def _crossings(results: Sequence[Result]) -> Iterator[str]:
    policies = [policy for policy in SYSTEMS if any(policy in result.curves for result in results)]
    others = [policy for policy in policies if policy in OTHERS]
    yield from _header(
        ["panel", "load", *map(system_name, policies), *(f"Aegaeon / {system_name(other)}" for other in others)]
    )
    for result in results:
        panel = result.panel
        loads = [_text(result.bounds(policy), DIGITS[panel.axis]) for policy in policies]
        ratios = [_text(result.ratio(other), 1) for other in others]
        yield _row([f"{panel.figure}: {panel.title}", _unit(panel), *loads, *ratios])


def _text(bounds: Bounds | None, digits: int) -> str:
    return bounds.text(digits) if bounds else "-"


def _header(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---"] * len(cells))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
