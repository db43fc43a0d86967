"""How figures look: systems as their records have it (name, colour, marker, dash, order), fonts, how files are written.

Systems can be told apart without colour. Files are the same bytes for the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from aegaeon.metrics import Metric
from aegaeon.scheduler.policy import Policy
from sim.systems.systems import SYSTEMS as POLICIES

INK = "#333333"
GREY = "#8a8a8a"
DPI = 200
HATCHES = ("", "////", "", "\\\\\\\\", "....", "xxxx")

Colour = tuple[float, float, float]

PALETTE: list[Colour] = sns.color_palette("colorblind")
_GREY = PALETTE[7]


@dataclass(frozen=True, slots=True)
class Look:
    """How a line is drawn. ``dash``: lengths of ink and gap in turn, empty for a solid line."""

    colour: Colour
    marker: str
    dash: tuple[float, ...]
    hollow: bool = False  # markers are rings: what was measured, beside what was simulated
    bold: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        dash = (0, self.dash) if self.dash else "-"
        full = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        ring = {"markersize": 7.5, "markerfacecolor": "none", "markeredgecolor": self.colour, "markeredgewidth": 1.6}
        width = {"linewidth": 2.4} if self.bold else {}
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": dash,
            **width,
            **(ring if self.hollow else full),
        }


@dataclass(frozen=True, slots=True)
class SystemStyle:
    """How a system is called and drawn in every figure. ``aliases``: its names in other people's records."""

    name: str
    look: Look
    aliases: tuple[str, ...] = ()


def _style(policy: Policy) -> SystemStyle:
    style = policy.style
    return SystemStyle(
        policy.title, Look(to_rgb(style.colour), style.marker, style.dash, bold=style.bold), policy.aliases
    )


SYSTEMS: Mapping[str, SystemStyle] = MappingProxyType(  # by policy, in the order of legends
    {name: _style(policy) for name, policy in POLICIES.items()}
)
_OTHER = Look(_GREY, "X", (2, 2))
LOOKS = (*(system.look for system in SYSTEMS.values()), _OTHER)
"""For lines that are no systems, in turn."""

SIZE = re.compile(r"[\d.]+b")  # of a model: billions of parameters


def tint(colour: Colour, white: float = 0.6) -> Colour:
    """A paler colour: mixed with a share of white."""
    red, green, blue = (channel + (1 - channel) * white for channel in colour)
    return red, green, blue


def policy_of(name: str) -> str:
    """The policy that a record calls so; the artifact writes ``<sim.scheduler.SeLLMPolicy object at 0x7f..>``."""
    words = re.findall(r"\w+", name)
    return next((policy for policy, system in SYSTEMS.items() if set(system.aliases) & {*words}), name)


def system_name(policy: str) -> str:
    """How a policy is called on a figure."""
    return SYSTEMS[policy].name if policy in SYSTEMS else policy


def model_name(kind: str) -> str:
    """``qwen2.5-7b`` as its makers write it: ``Qwen2.5-7B``."""
    return "-".join(part.upper() if SIZE.fullmatch(part) else part[:1].upper() + part[1:] for part in kind.split("-"))


def system_rank(policy: str) -> tuple[int, str]:
    """Sorts systems as ``SYSTEMS`` has them, unknown ones last."""
    known = list(SYSTEMS)
    return (known.index(policy) if policy in known else len(known), policy)


def metric_label(metric: Metric) -> str:
    """The label of the vertical axis: the metrics must not be taken for each other."""
    return "tokens on time (slo_attainment)" if metric is Metric.SLO_ATTAINMENT else "service time on target (qos)"


def system_look(policy: str, measured: bool = False) -> Look:
    """The look that a system has in every figure; those we have no name for share one."""
    return replace(SYSTEMS[policy].look if policy in SYSTEMS else _OTHER, hollow=measured)


def readable_on(colour: Colour) -> str:
    """Black or white, whichever stands out more on the colour."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


@contextmanager
def figure_style() -> Iterator[None]:
    """Fonts, lines and grid of all figures, while it lasts. Fonts go into a PDF as TrueType, as publishers want."""
    context = mpl.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.labelsize": 9,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "axes.edgecolor": INK,
            "text.color": INK,
            "axes.labelcolor": INK,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.7,
            "hatch.linewidth": 0.5,
            "pdf.fonttype": 42,
        }
    )
    with sns.axes_style("whitegrid"), context:
        yield


def new_figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure with one plot, apart from any screen."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(axes: Axes, title: str | None = None, columns: int = 1) -> None:
    """Below the plot, where it hides nothing."""
    axes.figure.legend(
        title=title, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.4, alignment="left"
    )


def write_figure(figure: Figure, directories: Sequence[Path], name: str) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.pdf`` into the first folder, and the PDF into the others."""
    directories[0].mkdir(parents=True, exist_ok=True)
    files = [directories[0] / f"{name}.png", *(directory / f"{name}.pdf" for directory in directories)]
    for file in files:
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {"Software": None}
        # Long names of curves make the legend wider than the axes: nothing of it may be cut off.
        figure.savefig(file, dpi=DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.06)
    return files


def write_picture(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
