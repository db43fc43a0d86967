"""Looks at models for a driver, which has neither torch nor Transformers: in forked processes that have, and end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegaeon.checkpoint_folder import FolderError, check_folder
from aegaeon.core.config import ModelConfig
from aegaeon.engine.prepared.findings_cache import FindingsCache
from aegaeon.engine.prepared.prepared_model import Findings, RefusedModel
from aegaeon.runtime.process.fork_server import ForkServer
from aegaeon.runtime.process.forked_process import Call
from aegaeon.runtime.process.process_log import LogPlace

_INSPECTION = "aegaeon.runtime.inspection"
_IMAGE = "aegaeon.engine.architecture.image"
MODULES = (_INSPECTION, _IMAGE)
"""What such a process imports."""

# Conversions and reads all take processor time, if only a little.
_SILENCE_S = 60.0


class Inspector:
    """``driver``: whose processes they are. ``forks`` forks them, having imported ``MODULES``; they log to ``logs``.

    All methods raise ``ProcessDiedError``.
    """

    def __init__(self, driver: str, logs: LogPlace, forks: ForkServer) -> None:
        self._name = f"{driver}-inspector"
        self._logs = logs
        self._forks = forks

    def prepare(self, configs: Sequence[ModelConfig], block_tokens: int, cache_dir: Path | None) -> Findings:
        """As ``inspect_models``, but what is known already is not looked at again."""
        cache = FindingsCache(cache_dir and cache_dir / "findings", block_tokens)
        bad = {config.name: RefusedModel(config, reason) for config in configs if (reason := _no_checkpoint(config))}
        good = {config.name: model for config in configs if config.name not in bad and (model := cache.get(config))}
        if new := [config for config in configs if config.name not in bad.keys() | good.keys()]:
            images = cache_dir and cache_dir / "images"
            prepared, refused = self._call(_INSPECTION, "inspect_models", new, block_tokens, images)
            for model in prepared:
                cache.put(model)
            good |= {model.config.name: model for model in prepared}
            bad |= {model.config.name: model for model in refused}
        names = [config.name for config in configs]
        return [good[name] for name in names if name in good], [bad[name] for name in names if name in bad]

    def needs_image(self, path: Path, dtype: str) -> str | None:
        """Why a model directory could not be bound as it is; raises as the function of this name does."""
        reason: str | None = self._call(_IMAGE, "needs_image", path, dtype)
        return reason

    def _call(self, module: str, function: str, *arguments: object) -> Any:
        call = Call(self._name, self._logs, module, function, arguments)
        with contextlib.closing(self._forks.start(call)) as process:
            return process.result(_SILENCE_S)


def _no_checkpoint(config: ModelConfig) -> str:
    """What is wrong with a folder that is none, which can be seen without torch."""
    try:
        check_folder(config.path)
    except FolderError as error:
        return str(error)
    return ""
