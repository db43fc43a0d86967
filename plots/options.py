"""The command line that all figures share, and how their errors are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.slo import Slo
from aegaeon.metrics import Metric
from aegaeon.run_header import Load
from plots.curves.usage import PlotUsageError
from plots.read.selection import TYPICAL_LOAD

PLOTS = Path(__file__).parent
RECORDS = PLOTS / "json"
FIGURES = PLOTS / "figures"  # part of the project: only ``make figures``, which draws all of them, writes there


def command_line(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring."""
    told = (docstring or "").replace("``", "")
    return argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)


@dataclass(frozen=True, slots=True)
class FigureScript:
    """A script that draws a figure: its command line has the options of every figure, and ``more``.

    Records of a figure with hardware of its own are in a ``subfolder`` of ``plots/json``, if they are not in it; those
    that the artifact comes with in one of ``plots``.
    """

    description: str | None
    draw: Callable[[argparse.Namespace], Sequence[Path]]
    more: Sequence[Callable[[argparse.ArgumentParser], None]]
    subfolder: str = ""

    def options(self) -> argparse.ArgumentParser:
        """The command line: where records are, where pictures go, what real records were measured on, and ``more``."""
        made = command_line(self.description)
        also = [f"plots/json/{self.subfolder}", f"plots/{self.subfolder}"] if self.subfolder else []
        folders = [folder for folder in (RECORDS, *(PLOTS.parent / name for name in also)) if folder.is_dir()]
        made.add_argument(
            "--json",
            type=_folder,
            nargs="+",
            default=list(dict.fromkeys(folders)) or [RECORDS],
            metavar="DIR",
            help=f"where records are, default {', '.join(['plots/json', *also])}",
        )
        made.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="where the PDF and PNG go; default plots/out, and the PDF beside the script too, as in the artifact",
        )
        made.add_argument(
            "--measured-on",
            metavar="DEVICE",
            help="what real records (run-*.json) without a device of their own were measured on, such as '2-core CPU'",
        )
        for add in self.more:
            add(made)
        return made

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Draw what the arguments ask for; an exit status."""
        return run(self.draw, self.options().parse_args(arguments))


def add_metric(options: argparse.ArgumentParser) -> None:
    """The option that chooses between the two metrics."""
    options.add_argument(
        "--metric",
        type=Metric,
        choices=list(Metric),
        default=Metric.SLO_ATTAINMENT,
        help="slo_attainment (default): share of tokens on time; qos: what the artifact's plots show",
    )


def add_slo(options: argparse.ArgumentParser) -> None:
    """The option that scores with other targets than the figure's own."""
    options.add_argument(
        "--slo",
        type=_slo,
        metavar="SCALE | ttft=S,tpot=S",
        help="score with these targets instead of the figure's own (a scale is of TTFT 10 s and TPOT 0.1 s)",
    )


def add_policy(options: argparse.ArgumentParser) -> None:
    """The option that chooses the system whose inner workings are shown."""
    options.add_argument("--policy", default="aegaeon", help="the system that is shown, default aegaeon")


def add_loads(options: argparse.ArgumentParser) -> None:
    """The option that chooses several loads."""
    options.add_argument(
        "--loads", type=_load, nargs="+", metavar="NxR", help="models x requests/s of each, such as 32x0.1"
    )


def add_load(options: argparse.ArgumentParser) -> None:
    """The options that choose one outcome: a system at one load."""
    add_policy(options)
    options.add_argument("--num-models", type=int, metavar="N", help="models of the load, default 32")
    options.add_argument("--arrival-rate", type=float, metavar="R", help="requests/s of each model, default 0.1")


def chosen_load(options: argparse.Namespace) -> Load | None:
    """What ``add_load`` was told; None if it was told nothing."""
    if options.num_models is None and options.arrival_rate is None:
        return None
    return Load(options.num_models or TYPICAL_LOAD.models, options.arrival_rate or TYPICAL_LOAD.rate)


def _load(text: str) -> Load:
    models, _, rate = text.partition("x")
    try:
        return Load(int(models), float(rate))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODELSxRATE, such as 32x0.1") from None


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _slo(text: str) -> Slo:
    try:
        if "=" not in text:
            return Slo().scaled(float(text))
        values = {name.strip(): float(value) for name, _, value in (part.partition("=") for part in text.split(","))}
        if not values.keys() <= {"ttft", "tpot"}:
            raise ValueError(text)
        return Slo(values.get("ttft", Slo().ttft_s), values.get("tpot", Slo().tpot_s))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a positive scale nor ttft=SECONDS,tpot=SECONDS"
        ) from None


def destinations(out: Path | None) -> list[Path]:
    """Folders for the figure: the first gets PDF and PNG, others the PDF."""
    return [out] if out else [PLOTS / "out", PLOTS]


def say(text: str) -> None:
    """A remark for the person at the terminal, apart from results."""
    print(text, file=sys.stderr)


def run(draw: Callable[[argparse.Namespace], Sequence[Path]], options: argparse.Namespace) -> int:
    """Draw, name the files that were written; an exit status. Errors of the person asking are told in a line."""
    try:
        files = draw(options)
    except PlotUsageError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    for file in files:
        print(_shown(file))
    return 0


def _shown(path: Path) -> Path:
    """Relative where that is shorter."""
    resolved = path.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
