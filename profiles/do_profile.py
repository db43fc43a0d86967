"""Profiles models on the local device: ``aegaeon profile``; without models, the small ones of the benchmarks.

    python3 profiles/do_profile.py [MODEL_DIR ...] [--quick] [--threads N] [--out DIR]

Profiles go to ``profiles/<device>/<model>.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from aegaeon.cli import main
from benchmark.e2e.small_models import BENCH_MODELS_DIR, bench_models, ensure_models

_SERVE_FLAGS = ("--prefill-chunk-tokens", "--max-batch-requests")
_MODELS = 4  # one of each architecture


def _arguments(given: list[str]) -> list[str]:
    """The arguments with the benchmarks' models where no model is named, and this folder where no other is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("models", nargs="*")
    for flag in ("-h", "--help", "--quick", "--fresh"):
        parser.add_argument(flag, action="store_true", dest="other")
    for flag in ("--device", "--threads", "--max-error", "--max-context", *_SERVE_FLAGS):
        parser.add_argument(flag, dest="other")
    parser.add_argument("--out")
    found, _ = parser.parse_known_args(given)
    out = [] if found.out else ["--out", str(Path(__file__).parent)]
    if found.models or {"-h", "--help"} & set(given):
        return [*given, *out]
    folders = ensure_models(bench_models(_MODELS), BENCH_MODELS_DIR, print)
    return [*(f"{name}={folder}" for name, folder in folders.items()), *given, *out]


if __name__ == "__main__":
    main(["profile", *_arguments(sys.argv[1:])])
