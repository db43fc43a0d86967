"""Small models for demos and benchmarks: made once, kept in a cache folder, found there the next time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import aegaeon
from aegaeon.settings.cache_dir import default_cache_dir
from benchmark.command.interrupt import deaf_to_interrupts

MAKERS = 2  # processes; making is compute, one thread each
CACHE_DIR = (
    Path(os.environ["AEGAEON_CACHE_DIR"])
    if os.environ.get("AEGAEON_CACHE_DIR")
    else default_cache_dir(os.environ) or Path(tempfile.gettempdir()) / "aegaeon"
)
BENCH_MODELS_DIR = CACHE_DIR / "bench-models"
VOICES_DIR = Path(aegaeon.__file__).parent / "data" / "voices"
DEMO_ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "mixtral")
BENCH_ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "mixtral")


@dataclass(frozen=True, slots=True)
class SmallModel:
    """A recipe. ``voice``: a text file that the model learns by heart."""

    name: str
    architecture: str
    seed: int = 0
    voice: Path | None = None
    dtype: str = "bfloat16"

    @property
    def folder(self) -> str:
        """Name of its folder; another recipe, text or version gets another one."""
        text = self.voice.read_text(encoding="utf-8") if self.voice else ""
        recipe = json.dumps([asdict(self), text, aegaeon.__version__], default=str, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def demo_models() -> list[SmallModel]:
    """One model per voice that comes with the package, of several architectures."""
    voices = sorted(VOICES_DIR.glob("*.txt"))
    return [
        SmallModel(voice.stem.replace("_", "-"), architecture, seed=index, voice=voice)
        for index, (voice, architecture) in enumerate(zip(voices, cycle(DEMO_ARCHITECTURES), strict=False))
    ]


def bench_models(count: int) -> list[SmallModel]:
    """Random models of several architectures."""
    architectures = [BENCH_ARCHITECTURES[index % len(BENCH_ARCHITECTURES)] for index in range(count)]
    return [SmallModel(f"small-{index:02d}", name, seed=index) for index, name in enumerate(architectures)]


def ensure_models(models: Sequence[SmallModel], cache: Path, tell: Callable[[str], object]) -> dict[str, Path]:
    """Folders of the models by name; those that are not in ``cache`` are made first."""
    folders = {model.name: cache / model.folder for model in models}
    missing = [(model, folders[model.name]) for model in models if not folders[model.name].is_dir()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        tell(f"making {len(missing)} small models in {cache} (once)")
        _make_all(missing, tell)
    return folders


def _make_all(missing: Sequence[tuple[SmallModel, Path]], tell: Callable[[str], object]) -> None:
    context = multiprocessing.get_context("spawn")
    with deaf_to_interrupts():  # inherited: Ctrl-C reaches this process alone, which ends its makers
        makers = context.Pool(min(MAKERS, len(missing)))
    with makers:
        for name in makers.imap_unordered(_make, missing):
            tell(f"made {name}")


def _make(job: tuple[SmallModel, Path]) -> str:
    """Make a model; its folder appears when it is whole."""
    model, folder = job
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here below
    from aegaeon.toy_models.make_model import make_model

    make_model(model.architecture, folder, dtype=model.dtype, seed=model.seed, learn=model.voice)
    return model.name
