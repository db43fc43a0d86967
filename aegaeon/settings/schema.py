"""What values must look like: pydantic models made from the options, and errors in the words of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails

from aegaeon.core.instance import Role
from aegaeon.settings.document import KeyPath
from aegaeon.settings.error import SettingsError
from aegaeon.settings.options import OPTIONS, Option, OptionKind, Scope
from aegaeon.settings.sizes import parse_bytes
from aegaeon.settings.sources import Sources

_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$"
_WORDS = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of names to values",
    "string_pattern_mismatch": "is not a name: use letters, digits and . _ : / @ + - (at most 200)",
}


def validate(sources: Sources) -> BaseModel:
    """Check every value at once; raises one ``SettingsError`` that names all that is wrong, one line each.

    The result has one attribute per key of the file, nested as there; what is not given is absent from
    ``model_fields_set``.
    """
    try:
        return _pool_schema().model_validate(_without_nulls(sources.data))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise SettingsError("\n".join(dict.fromkeys(_message(problem, sources) for problem in problems))) from None


def given(model: BaseModel) -> dict[str, Any]:
    """The values that were given, by key; nested mappings stay pydantic models."""
    return {name: getattr(model, name) for name in model.model_fields_set}


def _without_nulls(tree: Any) -> Any:
    """A key without a value counts as not given."""
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    return tree


@cache
def _pool_schema() -> type[BaseModel]:
    model_options = [option for option in OPTIONS if option.scope is Scope.MODEL]
    model = _schema("Model", model_options, path=(Annotated[str, StringConstraints(min_length=1)], ...))
    name = Annotated[str, StringConstraints(strict=True, pattern=_MODEL_NAME)]
    models = dict[name, Annotated[model, BeforeValidator(_expand_shorthand)]]  # type: ignore[valid-type]
    return _schema("Pool", OPTIONS, models=(models, {}))


def _schema(title: str, options: Iterable[Option], **extra: Any) -> type[BaseModel]:
    """A model with a field per option; options with a dotted key are gathered in a nested model."""
    config = ConfigDict(extra="forbid", frozen=True, title=title)
    nested: dict[str, dict[str, Any]] = {}
    flat: dict[str, Any] = dict(extra)
    for option in options:
        *outer, key = option.path
        (nested.setdefault(outer[0], {}) if outer else flat)[key] = (_annotation(option), None)
    for key, members in nested.items():
        flat[key] = (create_model(key, __config__=config, **members), None)
    return create_model(title, __config__=config, **flat)


def _expand_shorthand(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _annotation(option: Option) -> Any:
    bounds = Field(ge=option.low, le=option.high, multiple_of=option.multiple)
    if option.choices:
        return Literal[option.choices]
    match option.kind:
        case OptionKind.TEXT:
            return Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
        case OptionKind.TEXTS:
            text = Annotated[str, AfterValidator(option.check or str)]
            return Annotated[tuple[text, ...], BeforeValidator(_split)]
        case OptionKind.INTEGER:
            return Annotated[int, BeforeValidator(_refuse_bool), bounds]
        case OptionKind.SECONDS:
            return Annotated[float, BeforeValidator(_refuse_bool), bounds, Field(allow_inf_nan=False)]
        case OptionKind.BYTES:
            return Annotated[int, BeforeValidator(parse_bytes), bounds]
        case OptionKind.SWITCH | OptionKind.PATH:
            return bool if option.kind is OptionKind.SWITCH else Path
        case OptionKind.FOLDER:
            return Annotated[tuple[Path, Annotated[int, bounds]], BeforeValidator(_parse_folder)]
        case OptionKind.INSTANCES:
            count = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=option.high)]
            return Annotated[dict[Role, count], BeforeValidator(_parse_instances)]


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _split(value: object) -> object:
    """``a,b`` is what the file writes as a list; a flag that is given several times, each with one or more."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return value
    return tuple(item.strip() for text in texts for item in text.split(",") if item.strip())


def _parse_instances(value: object) -> object:
    """``3`` is three mixed instances; ``prefill=1,decode=2`` is what the file writes as a mapping."""
    if isinstance(value, str) and "=" in value:
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        counts = {role.strip(): count.strip() for role, _, count in pairs}
        if len(counts) < len(pairs):
            raise ValueError("must name each role once")
        return counts
    return value if isinstance(value, dict) else {Role.MIXED: value}


def _parse_folder(value: object) -> object:
    """``DIR,SIZE``; the folder's name may have commas."""
    folder, comma, size = str(value).rpartition(",")
    if not (isinstance(value, str) and folder.strip() and comma):
        raise ValueError("must be a folder and a size, such as /var/cache/aegaeon-kv,64GiB")
    return Path(folder.strip()), parse_bytes(size)


def _message(problem: ErrorDetails, sources: Sources) -> str:
    path: KeyPath = tuple(step for step in problem["loc"] if step != "[key]")
    return f"{sources.label(path)}: {_words(problem, path)}"


def _words(problem: ErrorDetails, path: KeyPath) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _WORDS[kind] + _suggestion(str(path[-1]), _known_keys(path[:-1]))
    if kind == "string_type" and "[key]" in problem["loc"]:
        return "is not text; put it in quotes"
    plain = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return _WORDS.get(kind) or plain + _got(path, problem["input"])


def _got(path: KeyPath, value: object) -> str:
    secret = any(option.secret and option.path == path[: len(option.path)] for option in OPTIONS)
    text = repr(value)
    return "" if secret or len(text) > 80 else f", got {text}"


def _known_keys(path: KeyPath) -> list[str]:
    """The keys that may stand in the mapping at ``path``."""
    in_model = path[:1] == ("models",)
    depth = 2 if in_model else 0
    inner = path[depth:]
    options = [option for option in OPTIONS if not in_model or option.scope is Scope.MODEL]
    keys = [option.path[len(inner)] for option in options if option.path[: len(inner)] == inner]
    extra = [] if inner else ["path"] if in_model else ["models"]
    return [*extra, *dict.fromkeys(keys)]


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"
