"""What is written on an attainment figure, and the bounds and ratios of the claims."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.crossing import crossing
from aegaeon.metrics import Metric
from aegaeon.run_header import Origin
from plots.claims import Result, claims_page
from plots.curves.bounds import Bounds
from plots.curves.curve import Curve, Source
from plots.curves.outcome import Distribution
from plots.draw.attainment import draw_attainment, draw_bound
from plots.draw.style import LOOKS, SYSTEMS, figure_style, new_figure
from sim.panels import PANELS

SIMULATED = Source(Origin.SIMULATED, "16 x H100")
MEASURED = Source(Origin.MEASURED, "2-core CPU")


def curve(label: str, *points: tuple[float, float], source: Source = SIMULATED, end: str = "") -> Curve:
    return Curve(label, source, points, end)


def drawn(*curves: Curve, digits: int = 0) -> tuple[list[str], list[str]]:
    """Texts inside the plot, and lines of its legend."""
    with figure_style():
        figure, axes = new_figure(4, 4)
        draw_attainment(axes, curves, LOOKS[: len(curves)], digits)
        (legend,) = figure.legends
        return [text.get_text() for text in axes.texts], [text.get_text() for text in legend.get_texts()]


def test_each_curve_says_who_made_it_and_how_far_it_goes() -> None:
    written, legend = drawn(
        curve("Aegaeon", (16, 1.0), (80, 0.95)),
        curve("ServerlessLLM", (16, 1.0), (40, 0.95), (80, 0.0)),
        curve("MuxServe", (16, 1.0), (32, 1.0), end="no placement"),
        curve("Aegaeon", (16, 0.5), source=MEASURED),
    )
    assert legend == [
        "Aegaeon (simulated, 16 x H100): > 80",
        "ServerlessLLM (simulated, 16 x H100): 42",
        "MuxServe (simulated, 16 x H100): 32, then no placement",
        "Aegaeon (measured, 2-core CPU): never",
    ]
    assert written == ["42"]


def test_what_all_curves_have_in_common_is_said_once() -> None:
    _, legend = drawn(curve("Aegaeon", (16, 1.0), (80, 0.95)), curve("MuxServe", (16, 1.0), (32, 1.0)))
    assert legend == ["Aegaeon: > 80", "MuxServe: > 32"]
    with figure_style():
        figure, axes = new_figure(4, 4)
        draw_attainment(axes, [curve("Aegaeon", (16, 1.0))], LOOKS[:1])
        assert figure.legends[0].get_title().get_text() == "simulated, 16 x H100\nat or above 90% up to"


def test_the_longest_legend_of_the_paper_fits_its_figure() -> None:
    source = Source(Origin.SIMULATED, "16 x H100, constants of the artifact")
    with figure_style():
        figure, axes = new_figure(4.7, 4.2)
        curves = [curve(system.name, (16, 1.0), source=source, end="no placement") for system in SYSTEMS.values()]
        draw_attainment(axes, curves, LOOKS[: len(curves)])
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_crossings_of_rates_have_decimals() -> None:
    written, _ = drawn(curve("Aegaeon", (0.1, 1.0), (0.2, 0.8)), digits=2)
    assert written == ["0.15"]


@pytest.mark.parametrize(
    ("points", "text", "lines"),
    [
        ([(20.0, 0.5), (40.0, 0.8), (60.0, 4 / 3)], "bound: 48", 1),
        ([(20.0, 0.1), (40.0, 0.2)], "bound: load 0.20 at 40", 0),
        ([(20.0, 1.5), (40.0, 3.0)], "bound: load 1.50 at 20", 0),
    ],
)
def test_the_bound_is_where_its_load_is_one_or_else_said_at_the_edge(
    points: list[tuple[float, float]], text: str, lines: int
) -> None:
    with figure_style():
        _, axes = new_figure(4, 4)
        draw_bound(axes, points)
        assert [drawn.get_text() for drawn in axes.texts] == [text]
        assert len(axes.lines) == lines


def test_numbers_of_close_crossings_do_not_touch() -> None:
    with figure_style():
        figure, axes = new_figure(4, 4)
        close = [curve(str(x), (0, 1.0), (x, 0.9), (100, 0.0)) for x in (30, 31, 32, 70)]
        draw_attainment(axes, close, LOOKS[:4])
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (Bounds(2.0, 2.0), "2.0"),
        (Bounds(2.0, inf), "> 2.0"),
        (Bounds(0.0, 2.0), "< 2.0"),
        (Bounds(1.0, 2.0), "1.0 - 2.0"),
        (Bounds(0.0, inf), "-"),
    ],
)
def test_bounds_say_what_is_known(bounds: Bounds, text: str) -> None:
    assert bounds.text(1) == text


positive = st.floats(0.1, 100.0)


@given(st.tuples(positive, positive), st.tuples(positive, positive), st.floats(0, 1), st.floats(0, 1))
def test_a_ratio_holds_whatever_lies_within_the_bounds(
    first: tuple[float, float], second: tuple[float, float], here: float, there: float
) -> None:
    a, b = Bounds(min(first), max(first)), Bounds(min(second), max(second))
    ratio = a.over(b)
    value = (a.low + here * (a.high - a.low)) / (b.low + there * (b.high - b.low))
    assert ratio.low <= value * (1 + 1e-9)
    assert value <= ratio.high * (1 + 1e-9)


def test_bounds_of_curves_that_do_not_cross() -> None:
    above, below = crossing([(16, 1.0), (80, 1.0)]), crossing([(16, 0.5)])
    assert Bounds.of(above) == Bounds(80, inf)
    assert Bounds.of(above, known_end=True) == Bounds(80, 80)
    assert Bounds.of(below) == Bounds(0, 16)
    assert Bounds.of(above).over(Bounds.of(below)) == Bounds(5, inf)


def test_the_page_of_claims_has_crossings_and_ratios() -> None:
    curves = [
        ("aegaeon", curve("Aegaeon", (16, 1.0), (32, 1.0), (80, 0.8))),
        ("sllm", curve("ServerlessLLM", (16, 1.0), (32, 0.8))),
        ("muxserve", curve("MuxServe", (16, 1.0), (32, 1.0), end="no placement")),
        ("aegaeon", curve("Aegaeon", (16, 1.0), source=MEASURED)),
    ]
    results = {metric: [Result.of(PANELS["0.1"], curves)] for metric in Metric}
    switches = {"aegaeon": {"qwen2.5-7b": Distribution.of([0.1])}, "sllm": {"qwen2.5-7b": Distribution.of([1.0])}}
    page = claims_page(results, switches)
    assert "| Figure 11(a): 0.1 requests/s per model | models | 56 | 24 | 32 | 2.3 | 1.8 |" in page
    assert "| goodput over ServerlessLLM | 1.5 - 9 x | 2.3 x | 2.3 x |" in page
    assert "| share on time at one load over ServerlessLLM, largest | 1.5 - 9 x | 1.2 x (Figure 11(a), 32) |" in page
    assert "90% over ServerlessLLM" in page
    assert "| Qwen2.5-7B | 100 ms / 100 ms | 1.00 s / 1.00 s |" in page
