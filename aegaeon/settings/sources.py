"""Values from the file, the environment and flags, laid over each other, with where each came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from aegaeon.settings.document import Document, KeyPath, read_document
from aegaeon.settings.error import SettingsError
from aegaeon.settings.options import CONFIG_VARIABLE, MODELS_VARIABLE, OPTIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """``data``: the tree of values, as in the file. ``labels``: where those come from that are not the file's."""

    document: Document
    data: dict[Any, Any]
    labels: dict[KeyPath, str] = field(default_factory=dict)

    def label(self, path: KeyPath) -> str:
        """Where a value came from, for messages: a flag, a variable, or file, line and key."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.labels:
                return self.labels[path[:end]]
        if not self.document.lines:
            return ".".join(map(str, path))
        return f"{self.document.file}:{self.document.line(path)}: {'.'.join(map(str, path))}"

    def folder(self, path: KeyPath) -> Path:
        """What a relative file name of this value starts from: the file's folder, or the working directory."""
        return Path.cwd() if path in self.labels else self.document.file.parent.absolute()

    def override(self, path: KeyPath, value: object, label: str) -> None:
        """Lay a value over what is there."""
        tree = self.data
        for depth, key in enumerate(path[:-1], 1):
            if tree.get(key) is None:
                tree[key] = {}
            tree = tree[key]
            if not isinstance(tree, dict):
                raise SettingsError(f"{self.label(path[:depth])}: must be a mapping of keys to values")
        tree[path[-1]] = value
        self.labels[path] = label


def read_sources(
    models: Sequence[str], file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str]
) -> Sources:
    """Lay flags over the environment over the file.

    ``models``: ``NAME=DIR`` arguments; they join the file's models, and replace the path of one with the same name.
    ``flags``: values by ``Option.parameter``; None and an empty list mean not given, as do empty
    variables.
    """
    file = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    document = read_document(file.expanduser()) if file else Document(Path("pool.yaml"), {}, {})
    sources = Sources(document, document.data)
    listed = (item.strip() for item in environment.get(MODELS_VARIABLE, "").split(","))
    _add_models(sources, [item for item in listed if item], MODELS_VARIABLE)
    _add_models(sources, models, "argument")
    _warn_of_misspelt(environment)
    for option in OPTIONS:
        flag, variable = flags.get(option.parameter), environment.get(option.variable)
        if flag is not None and flag != []:
            sources.override(option.path, flag, option.flag)
        elif variable:
            sources.override(option.path, variable, option.variable)
    return sources


def _warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Others may have variables of that prefix, too (Kubernetes makes some for a service of this name)."""
    known = {CONFIG_VARIABLE, MODELS_VARIABLE, *(option.variable for option in OPTIONS)}
    for name in sorted(environment.keys() - known):
        near = get_close_matches(name, known, 1, 0.85) if name.startswith("AEGAEON_") else []
        if near:
            logger.warning("the variable %s is not known and has no effect; did you mean %s?", name, near[0])


def _add_models(sources: Sources, models: Sequence[str], label: str) -> None:
    given: set[str] = set()
    for model in models:
        name, equals, directory = model.partition("=")
        if not (name and equals and directory):
            raise SettingsError(f"{label} '{model}': must be NAME=DIR, such as my-model=path/to/its/folder")
        if name in given:
            raise SettingsError(f"{label} '{model}': the name '{name}' is given twice; names must differ")
        given.add(name)
        _expand_shorthand(sources.data, name)
        sources.override(("models", name, "path"), directory, f"{label} '{model}'")


def _expand_shorthand(data: dict[Any, Any], name: str) -> None:
    """``name: DIR`` becomes ``name: {path: DIR}``, so that the path can be replaced."""
    models = data.get("models")
    if isinstance(models, dict) and isinstance(models.get(name), str):
        models[name] = {"path": models[name]}
