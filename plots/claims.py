"""Our figures beside the published claims, as a Markdown page.

Does not know: how records are found and read, how figures are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plots.bounds import Bounds
from plots.cdf import duration
from plots.curve import Curve, Origin
from plots.outcome import Distribution
from plots.panel import DIGITS, Axis, Panel
from plots.style import SYSTEMS, model_name, system_name
from plots.token_gaps import Metric

OURS = "aegaeon"
OTHERS = ("sllm", "sllm+", "muxserve")
RATE_SPEC = "40"  # the panel that sweeps the rate

INTRODUCTION = """\
# Claims

Written by `make figures`, from simulations: nothing here was measured unless it says so. Every number can be read off a
figure in `plots/figures`. A curve's *crossing* is the load at which it first falls below 90 %, interpolated between the
points beside it; `>` and `<` say that the sweep ends before it does, or begins after. Two metrics are told apart:
`slo_attainment` is the share of tokens produced by their due time, `qos` the share of service time on target, which is
what the published plots show. Requests that were dropped count 0 in both.
"""
READING = """\
How the claims are read here: the arrival rate is the crossing of Figure 11(c), where it grows; the goodput, requests/s
at 90 %, are the crossings of Figures 11 to 13; the published 9 may also be the share on time of two systems under the
same load. MuxServe takes no more models than it finds room for: its last point counts as its crossing. `-` stands where
neither system falls below 90 % within the sweep, or one takes none of its loads.
"""

SWITCHES = """\
Mean and 99th percentile of the time that a switch keeps a turn waiting for its model, at 80 models x 0.1 requests/s.
The published 97 % compares with a switch that starts its engine anew, which no system simulated here does:
ServerlessLLM loads weights over the same link as Aegaeon, without prefetching them.
"""

SwitchTimes = Mapping[str, Mapping[str, Distribution]]


@dataclass(frozen=True, slots=True)
class Result:
    """A panel and its simulated curves by policy."""

    panel: Panel
    curves: Mapping[str, Curve]

    @classmethod
    def of(cls, panel: Panel, curves: Sequence[tuple[str, Curve]]) -> Result:
        """Of what was drawn, leaving out what was measured."""
        return cls(panel, {policy: curve for policy, curve in curves if curve.source.origin is Origin.SIMULATED})

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

    def ratio(self, other: str) -> Bounds | None:
        """Our load at 90 % over another system's."""
        ours, theirs = self.bounds(OURS), self.bounds(other)
        return ours.over(theirs) if ours and theirs else None


def claims_page(results: Mapping[Metric, Sequence[Result]], switch_s: SwitchTimes) -> str:
    """The page. ``switch_s``: times of switches by policy and model."""
    lines = [INTRODUCTION, f"All systems: {_sources(results)}.", "", "## Published and ours", ""]
    lines += [*_comparison(results, switch_s), "", READING]
    for metric, panels in results.items():
        lines += [f"## 90 % by `{metric}`", "", *_crossings(panels), ""]
    lines += ["## Switches", "", SWITCHES, *_switches(switch_s), ""]
    return "\n".join(lines)


def _sources(results: Mapping[Metric, Sequence[Result]]) -> str:
    """On what the curves were simulated, usually the same for all."""
    curves = [curve for panels in results.values() for result in panels for curve in result.curves.values()]
    return "; ".join(sorted({str(curve.source) for curve in curves}))


def _comparison(results: Mapping[Metric, Sequence[Result]], switch_s: SwitchTimes) -> Iterator[str]:
    metrics = list(results)
    yield from _header(["claim (Aegaeon, SOSP'25)", "published", *(f"ours, `{metric}`" for metric in metrics)])
    for other in OTHERS:
        rates = [_range([r for r in results[m] if r.panel.spec == RATE_SPEC], other) for m in metrics]
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
    """From the least ratio to the largest, over panels."""
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
        unit = "models" if panel.axis is Axis.MODELS else "requests/s per model"
        ratios = [_text(result.ratio(other), 1) for other in others]
        yield _row([f"{panel.figure}: {panel.title}", unit, *loads, *ratios])


def _text(bounds: Bounds | None, digits: int) -> str:
    return bounds.text(digits) if bounds else "-"


def _header(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---"] * len(cells))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
