"""Files of records without a header: the SOSP'25 artifact's, and those of earlier versions. Their names say what is in
them, and they are given the header that they lack.

- ``run-<models>-<rate>-<inlen>-<outlen>-ttft<TTFT>-tpot<TPOT>.json``: a real run. The artifact's say no policy: there
  is one.
- ``sim-model<first>-<last>-rate<r>-scale-<inlen>-<outlen>.json``: a simulated sweep. With one number of models the name
  begins with ``sim-model<n>-rate``; targets other than the usual ones follow in it.
- ``<models>-<rate>.json``: the results for Figure 17 that the artifact comes with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aegaeon.core.slo import Slo
from aegaeon.run_header import Load, Origin, RunHeader, SystemRun
from aegaeon.scheduler.policies.paper.policy import POLICY as PAPER_POLICY
from plots.curves.usage import PlotUsageError
from plots.draw.style import policy_of
from plots.read.json_file import read_object, reading

RUN = "run"  # what the only run of a file is called
_NUMBER = r"(\d+(?:\.\d+)?)"
_RUN_NAME = re.compile(rf"run-(\d+)-{_NUMBER}-{_NUMBER}-{_NUMBER}-ttft{_NUMBER}-tpot{_NUMBER}\.json")
_RESULT_NAME = re.compile(rf"(\d+)-{_NUMBER}\.json")
_SWEEP_NAME = re.compile(
    rf"sim-model(\d+)(?:-(\d+))?-rate{_NUMBER}(?:-{_NUMBER})?-scale-{_NUMBER}-{_NUMBER}"
    rf"(?:-ttft{_NUMBER}-tpot{_NUMBER})?\.json"
)
_KEY = re.compile(  # (16, sllm), (16, <sim.SeLLMPolicy object at 0x7f>)
    r"\(\s*([\d.]+)\s*,\s*['\"]?([^'\"]+?)['\"]?\s*\)"
)
_OUR_IDS = re.compile(r".+-\d{5}")  # of requests in records of this project


def imported_header(path: Path, summary: Mapping[str, Any]) -> RunHeader | None:
    """The header that a file's name makes; None where it is no name of records. Raises ``PlotUsageError``."""
    if matched := _RUN_NAME.fullmatch(path.name):
        models, *numbers = matched.groups()
        *load, ttft_s, tpot_s = map(float, numbers)
        return _measured(path, Load.of(int(models), *load), Slo(ttft_s, tpot_s))
    if matched := _SWEEP_NAME.fullmatch(path.name):
        with reading(path, "points"):
            keys = [*(summary.get("points") or read_object(path)), *summary.get("no_placement", {})]
            runs = {key: _run_of(key, matched) for key in keys}
        targets_s = [float(text) for text in matched.groups()[-2:] if text]
        slo = Slo(*targets_s) if targets_s else Slo()
        return RunHeader(Origin.SIMULATED, summary.get("device"), slo, runs, version="", commit="")
    return None


def result_header(path: Path, slo: Slo) -> RunHeader | None:
    """The header of one of the results for Figure 17, as scored by these targets; None where it is none."""
    matched = _RESULT_NAME.fullmatch(path.name)
    return _measured(path, Load.of(int(matched[1]), float(matched[2])), slo) if matched else None


def _measured(path: Path, load: Load, slo: Slo) -> RunHeader:
    return RunHeader(Origin.MEASURED, None, slo, {RUN: SystemRun(_policy(path), load)}, version="", commit="")


def _policy(path: Path) -> str:
    """What the server ran."""
    requests = read_object(path)
    with reading(path, "policy"):
        stated = {str(request["policy"]) for request in requests.values() if "policy" in request}
    if len(stated) > 1:
        raise PlotUsageError(f"{path} has records of several policies: {', '.join(sorted(stated))}")
    if not stated and any(map(_OUR_IDS.fullmatch, requests)):
        raise PlotUsageError(f"{path} does not say which policy ran (its summary is missing): move it away")
    return stated.pop() if stated else PAPER_POLICY.name


def _run_of(key: str, name: re.Match[str]) -> SystemRun:
    """``x`` of the key counts models, unless the file has one number of models and it is another number."""
    matched = _KEY.fullmatch(key)
    if matched is None:
        raise ValueError(f"{key!r} is not (x, policy)")
    x = float(matched[1])
    first, last, rate, _, inlen_scale, outlen_scale, _, _ = name.groups()
    sweeps_rate = last in (None, first) and x != int(first)
    models, rate_per_s = (int(first), x) if sweeps_rate else (int(x), float(rate))
    return SystemRun(policy_of(matched[2]), Load.of(models, rate_per_s, float(inlen_scale), float(outlen_scale)))
