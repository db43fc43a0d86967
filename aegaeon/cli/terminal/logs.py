"""Logging of a command: our messages from INFO up, those of libraries from WARNING up, to one place."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from aegaeon.cli.terminal.failure import DEBUG_VARIABLE
from aegaeon.settings.error import SettingsError

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # models are local folders; nothing is ever fetched
    "RAY_DEDUP_LOGS": "0",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",  # else Ray hides GPUs from actors that do not ask it for one
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
# These warn on every start of what is no fault: a start from a thread, Ray's own tokens.
_CHATTY = ("ray._private.worker", "ray._private.authentication.authentication_token_setup")


def configure_logs(file: Path | None) -> None:
    """Log to ``file``, else to standard error. Call before Ray and Transformers are imported.

    Libraries are told through their own variables, which child processes inherit; what is set already is kept.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    logging.basicConfig(format=_FORMAT, level=logging.WARNING, handlers=[_handler(file)], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("aegaeon").setLevel(our_level())


def our_level() -> int:
    """The least level of our own messages that are logged."""
    debugging = os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    return logging.DEBUG if debugging else logging.INFO


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler()
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--log-file: cannot write to {file}: {error.strerror}") from error
