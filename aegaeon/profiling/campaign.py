"""Profiles several models on this machine: measures, fits, writes a file for each whose fit is good."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aegaeon import __version__
from aegaeon.core.config import ModelConfig
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.latency.files.profile_file import ProfileFile, Provenance
from aegaeon.latency.fit.part_fit import Fit
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.grid import GridLimits
from aegaeon.profiling.journal import Journal
from aegaeon.profiling.measured_file import fit_journal, measured_file
from aegaeon.profiling.probe import RESIDENT_MODELS, Probe, ProbeOptions
from aegaeon.profiling.profiler import Effort, ModelProfiler, Progress, run_rounds, subject_of
from aegaeon.profiling.target import Target, cpu_target

_TOOL = f"aegaeon profile {__version__}"
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Campaign:
    """What to profile and how. ``kv_bytes`` bounds the KV of the largest batch; ``date`` and ``commit`` (of this code)
    are written into the files. Without a ``target`` it is the CPU, with ``threads``."""

    folders: Mapping[str, Path]
    out: Path
    threads: int
    kv_bytes: int
    chunk_tokens: int
    max_batch_requests: int
    max_context_tokens: int
    max_error: float
    quick: bool
    fresh: bool
    date: str
    target: Target | None = None
    commit: str = ""

    def run(self, progress: Progress) -> tuple[list[ProfileFile], list[str]]:
        """The files written, and for each model without one the reason. Raises ``ProfilingError``."""
        with tempfile.TemporaryDirectory(prefix="aegaeon-profile-") as scratch:
            models = self._prepare(Path(scratch))
            options = self._probe_options(models)
            profilers = [self._profiler(models, index, options) for index in range(len(models))]
            if any(profiler.done < profiler.total for profiler in profilers):
                with Probe(models, options) as probe:
                    run_rounds(probe, profilers, Effort.of(self.quick), progress)
        outcomes = [self._outcome(model, profiler) for model, profiler in zip(models, profilers, strict=True)]
        files = [outcome for outcome in outcomes if isinstance(outcome, ProfileFile)]
        return files, [outcome for outcome in outcomes if isinstance(outcome, str)]

    def _profiler(self, models: Sequence[PreparedModel], index: int, options: ProbeOptions) -> ModelProfiler:
        model, other = models[index], models[index - 1]  # the model itself where it is the only one
        path = self._path(model).with_suffix(".measurements.jsonl")
        journal = Journal.open(path, subject_of(model, options), fresh=self.fresh)
        return ModelProfiler(model.spec.name, other.spec.name, self._limits(model), Effort.of(self.quick), journal)

    def _outcome(self, model: PreparedModel, profiler: ModelProfiler) -> ProfileFile | str:
        fit = self._fit(model, profiler)
        if fit.worst_error > self.max_error:
            return self._refusal(model, fit)
        return self._write(model, fit, profiler)

    @property
    def _target(self) -> Target:
        return self.target or cpu_target(self.threads)

    def _prepare(self, scratch: Path) -> list[PreparedModel]:
        configs = [ModelConfig(name, folder) for name, folder in self.folders.items()]
        prepared, refused = prepare_models(configs, _BLOCK_TOKENS, scratch)
        if refused:
            raise ProfilingError("\n".join(f"{model.config.name}: {model.reason}" for model in refused))
        return prepared

    def _limits(self, model: PreparedModel) -> GridLimits:
        context_tokens = min(self.max_context_tokens, model.spec.max_context_tokens)
        kv_tokens = min(
            self.kv_bytes // max(1, model.spec.kv_shape.token_bytes), context_tokens * self.max_batch_requests
        )
        return GridLimits(context_tokens, kv_tokens, self.max_batch_requests)

    def _probe_options(self, models: Sequence[PreparedModel]) -> ProbeOptions:
        self._require_room(models)
        kv_tokens = max(self._limits(model).kv_tokens for model in models)
        return ProbeOptions(self._target, self.chunk_tokens, kv_tokens, self.max_batch_requests)

    def _require_room(self, models: Sequence[PreparedModel]) -> None:
        sizes = sorted((model.spec.weight_bytes for model in models), reverse=True)
        needed_bytes, room_bytes = sum(sizes[:RESIDENT_MODELS]) + self.kv_bytes, self._target.memory_bytes
        if room_bytes is not None and needed_bytes > room_bytes:
            raise ProfilingError(
                f"{self._target.description} has room for {room_bytes / 2**30:.1f} GiB; the two largest models and "
                f"their KV need {needed_bytes / 2**30:.1f}: profile fewer or smaller models at a time"
            )

    def _path(self, model: PreparedModel) -> Path:
        return self.out / self._target.name / f"{model.spec.name.replace('/', '--')}.json"

    def _fit(self, model: PreparedModel, profiler: ModelProfiler) -> Fit:
        try:
            return fit_journal(profiler.points, profiler.journal, self.chunk_tokens, self.max_error)
        except ValueError as error:
            raise ProfilingError(
                f"{model.spec.name}: {error}; it is too slow for --quick, or its context too short to profile"
            ) from error

    def _refusal(self, model: PreparedModel, fit: Fit) -> str:
        return (
            f"{model.spec.name}: no profile written, the fit is off by {fit.prefill.mean_error:.1%} in prefill and "
            f"{fit.decode.mean_error:.1%} in decode, more than --max-error {self.max_error:.0%}. Measure again with "
            f"--fresh on a quiet machine; what was measured is in {self._path(model).parent}"
        )

    def _write(self, model: PreparedModel, fit: Fit, profiler: ModelProfiler) -> ProfileFile:
        source = (
            f"measured on {self._target.description}, torch {torch.__version__}, "
            f"prompts in chunks of {self.chunk_tokens}, "
            f"{'quick: ' if self.quick else ''}lower quartile of {Effort.of(self.quick).rounds} rounds"
        )
        tool = f"{_TOOL}, commit {self.commit}" if self.commit else _TOOL
        provenance = Provenance(source=source, licence="as you wish: your own", date=self.date, tool=tool)
        file = measured_file(
            model, self._target.name, fit, profiler.journal, profiler.points, self.chunk_tokens, provenance
        )
        try:
            file.write(self._path(model))
        except OSError as error:
            raise ProfilingError(f"cannot write {self._path(model)}: {error.strerror}") from error
        return file
