"""A YAML file as plain data that remembers the line of every key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aegaeon.settings.error import SettingsError

KeyPath = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """``data``: the mapping in the file. Keys are paths into it, such as ``("models", "a", "path")``."""

    file: Path
    data: dict[Any, Any]
    lines: dict[KeyPath, int] = field(repr=False)

    def line(self, path: KeyPath) -> int:
        """Line (from 1) of the key, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(file: Path) -> Document:
    """Read a file whose top level is a mapping.

    Raises ``SettingsError`` naming file and line for text that is not YAML and for a key that appears twice.
    """
    try:
        loader = yaml.SafeLoader(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: is not text in UTF-8") from error
    try:
        return _document(file, loader)
    except SettingsError:
        raise
    except RecursionError as error:
        raise SettingsError(f"{file}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _not_yaml(file, error) from error
    finally:
        loader.dispose()


def _document(file: Path, loader: yaml.SafeLoader) -> Document:
    root = loader.get_single_node()
    if root is None:
        return Document(file, {}, {})
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(
            f"{file}:{_line(root)}: must be a mapping, such as\nmodels:\n  my-model: path/to/its/folder"
        )
    lines: dict[KeyPath, int] = {}
    for path, line in _keys(root, (), set()):
        if path in lines:
            where = f" in '{'.'.join(map(str, path[:-1]))}'" if path[:-1] else ""
            raise SettingsError(
                f"{file}:{line}: duplicate key '{path[-1]}'{where} (first on line {lines[path]}): remove or rename one"
            )
        lines[path] = line
    return Document(file, loader.construct_mapping(root, deep=True), lines)  # deep: refuses nodes that hold themselves


def _keys(node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    """Every key below ``node`` with its line. A node that aliases share is entered once, so that loops end."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value if isinstance(key, yaml.ScalarNode) else _line(key))
            yield inner, _line(key)
            yield from _keys(value, inner, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _keys(value, (*path, index), seen)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _not_yaml(file: Path, error: Exception) -> SettingsError:
    mark = getattr(error, "problem_mark", None)
    where = f"{file}:{mark.line + 1}" if mark else str(file)
    return SettingsError(f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}")
