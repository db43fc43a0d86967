"""``python -m aegaeon.latency``: make latency profiles from measurements, estimate them, check the estimates."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from aegaeon.latency.estimate.device_spec import device_spec
from aegaeon.latency.estimate.errors import LatencyError, UnknownNameError, plain
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.estimate.roofline import fastest
from aegaeon.latency.files.estimated_file import estimated_file
from aegaeon.latency.files.fitted_file import fitted_file
from aegaeon.latency.files.profile_file import Provenance
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.latency.fit.measured_fit import MeasuredFit, fit
from aegaeon.latency.fit.measurement import Measurement, read_measurements
from aegaeon.latency.fit.part_fit import MAX_ERROR
from aegaeon.latency.fit.slowdown import MeasuredSet, calibrate
from aegaeon.latency.report import check_table, fit_table, slowdown_table

_PIPE_WIDTH = 140  # a pipe has no width
_FIT_TOOL = "python -m aegaeon.latency fit"


def main(arguments: Sequence[str] | None = None, program: str = "python -m aegaeon.latency") -> int:
    """Run a subcommand; returns the exit status."""
    chosen = _parser(program).parse_args(arguments)
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)
    try:
        chosen.run(chosen, console)
    except (LatencyError, OSError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Latency profiles of models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_estimate(commands)
    _add_check(commands)
    return parser


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("fit", help="fit profiles to measurements and write them")
    _add_measurements(command)
    command.add_argument("--out", type=Path, default=Path("profiles"), help="folder of the profiles  [profiles]")
    command.add_argument("--max-error", type=float, default=MAX_ERROR, help=f"mean relative error  [{MAX_ERROR}]")
    command.add_argument("--source", default="unpublished measurements", help="where they come from")
    command.add_argument("--licence", default="unknown", help="of the measurements")
    command.add_argument("--date", required=True, metavar="YYYY-MM-DD", help="when the profiles are made")
    command.set_defaults(run=_fit)


def _add_estimate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("estimate", help="estimate a profile from a model's config.json and write it")
    command.add_argument("config", type=Path, help="a Hugging Face config.json, or a file of profiles/models")
    command.add_argument("--device", required=True, help="such as h100")
    command.add_argument("--name", help="what to call the model  [the folder of the config]")
    command.add_argument("--tp", type=int, default=1, help="devices that share the model  [1]")
    command.add_argument("--out", type=Path, default=Path("profiles"), help="folder of the profiles  [profiles]")
    command.set_defaults(run=_estimate)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("check", help="calibrate estimates on measurements, and test them on those left out")
    _add_measurements(command)
    command.set_defaults(run=_check)


def _add_measurements(command: argparse.ArgumentParser) -> None:
    command.add_argument("measurements", type=Path, help="CSV: model, device, input_len, batch_size, prefill_ms, ...")
    command.add_argument("--models", type=Path, default=shipped_profiles() / "models", help="model facts")


def _fit(chosen: argparse.Namespace, console: Console) -> None:
    provenance = Provenance(source=chosen.source, licence=chosen.licence, date=chosen.date, tool=_FIT_TOOL)
    fits = [_fit_set(chosen, *each) for each in read_measurements(chosen.measurements).items()]
    files = [fitted_file(facts, device_spec(device), made, provenance) for facts, device, made in fits]
    for file in files:
        file.write(chosen.out / file.device / f"{file.model}.json")
    console.print(fit_table(files))
    console.print(f"{len(files)} profiles written under {chosen.out}")


def _fit_set(
    chosen: argparse.Namespace, name: tuple[str, str], points: Sequence[Measurement]
) -> tuple[CatalogueModel, str, MeasuredFit]:
    model, device = name
    facts = _known(model, CatalogueModel.read_all(chosen.models), chosen.models)
    limit = getattr(chosen, "max_error", MAX_ERROR)
    try:
        return facts, device, fit(points, fastest(facts.architecture, device_spec(device)), limit)
    except LatencyError as error:
        raise LatencyError(f"{model} on {device}: {error}") from None


def _known(model: str, known: Sequence[CatalogueModel], folder: Path) -> CatalogueModel:
    for facts in known:
        if plain(model) in map(plain, (facts.model, *facts.aliases)):
            return facts
    raise UnknownNameError("model", model, [facts.model for facts in known], f" in {folder}")


def _estimate(chosen: argparse.Namespace, console: Console) -> None:
    file = estimated_file(_facts(chosen), device_spec(chosen.device), chosen.tp)
    path = chosen.out / file.device / (f"{file.model}-tp{file.tp}.json" if file.tp > 1 else f"{file.model}.json")
    if path.exists() and '"estimated": true' not in path.read_text("utf-8"):
        raise LatencyError(f"{path} is a measured profile; an estimate does not replace it: choose another --out")
    file.write(path)
    console.print(fit_table([file]))
    console.print(f"written to {path}")


def _facts(chosen: argparse.Namespace) -> CatalogueModel:
    """From a file of ``profiles/models``, or around a bare config."""
    try:
        document = json.loads(chosen.config.read_bytes())
    except (OSError, ValueError) as error:
        raise LatencyError(f"cannot read {chosen.config} as JSON: {error}") from None
    if isinstance(document, dict) and "repository" in document:
        return CatalogueModel.read(chosen.config)
    if not isinstance(document, dict):
        raise LatencyError(f"{chosen.config} holds no JSON object; give a Hugging Face config.json")
    name = chosen.name or chosen.config.resolve().parent.name
    return CatalogueModel(model=name, repository=name, config=document)


def _check(chosen: argparse.Namespace, console: Console) -> None:
    fits = [_fit_set(chosen, *each) for each in read_measurements(chosen.measurements).items()]
    sets = [
        MeasuredSet(facts.model, facts.architecture, device_spec(device), made.prefill.samples, made.decode.samples)
        for facts, device, made in fits
    ]
    console.print(check_table(sets))
    console.print(slowdown_table(calibrate(sets)))


if __name__ == "__main__":
    raise SystemExit(main())
