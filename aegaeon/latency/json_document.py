"""JSON documents as dataclasses: every value is checked against its field's annotation, and no other is accepted.

What Pydantic would do, without its import, which takes longer than most simulations.

Does not know: what the documents describe.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Document = TypeVar("Document")

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}


class DocumentError(ValueError):
    """What is wrong in a document, and where in it."""


def parse(kind: type[Document], text: bytes) -> Document:
    """The dataclass ``kind`` from a JSON object. Raises ``DocumentError``; so does a ``ValueError`` of a dataclass."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DocumentError(f"no JSON: {error}") from None
    document: Document = _object(kind, value, "")
    return document


def dump(document: Any) -> str:
    """The JSON text of a dataclass; fields that are None are left out."""
    return json.dumps({name: value for name, value in asdict(document).items() if value is not None}, indent=2) + "\n"


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DocumentError(f"{where.removesuffix('.') or 'the file'}: {value!r} is not an object")
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise DocumentError(f"{where}{name}: there is no such field; the fields are: {', '.join(hints)}")
    missing = [field.name for field in fields(kind) if field.name not in value and _is_required(field)]
    if missing:
        raise DocumentError(f"{where}{missing[0]}: is missing")
    try:
        return kind(**{name: _value(hints[name], item, f"{where}{name}") for name, item in value.items()})
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"{where}{error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _object(hint, value, f"{where}.")
    if origin is UnionType:  # of something and None
        return None if value is None else _value(arguments[0], value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is Literal and value not in arguments:
        raise DocumentError(f"{where}: {value!r} is not {' or '.join(map(repr, arguments))}")
    if hint is float and type(value) is int:
        return float(value)
    if (hint in _NAMES and type(value) is not hint) or (origin is dict and not isinstance(value, dict)):
        raise DocumentError(f"{where}: {value!r} is not {_NAMES.get(hint, 'an object')}")
    return value


def _tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DocumentError(f"{where}: {value!r} is not a list")
    each = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
    if len(value) != len(each):
        raise DocumentError(f"{where}: {len(each)} entries are expected, got {value!r}")
    return tuple(
        _value(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(zip(each, value, strict=True))
    )


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
