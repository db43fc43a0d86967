"""Flags of ``aegaeon serve``, one for every option."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from aegaeon.settings.options import OPTIONS, Option, OptionKind
from aegaeon.settings.reference import describe_default


def with_pool_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the ``**flags`` of a command by one keyword parameter per option, as typer reads them."""
    own = [
        item for item in signature(command, eval_str=True).parameters.values() if item.kind is not Parameter.VAR_KEYWORD
    ]
    made = [
        Parameter(option.parameter, Parameter.KEYWORD_ONLY, default=None, annotation=_flag(option))
        for option in OPTIONS
    ]
    command.__signature__ = signature(command).replace(parameters=[*own, *made])  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in [*own, *made]}
    return command


def _flag(option: Option) -> Any:
    text = f"{option.help}  [{option.variable}; default: {describe_default(option)}]"
    if option.kind is OptionKind.SWITCH:
        return Annotated[bool | None, typer.Option(f"{option.flag}/--no-{option.flag[2:]}", help=text)]
    metavar = "|".join(option.choices) or option.kind.value
    if option.kind is OptionKind.TEXTS:
        return Annotated[list[str] | None, typer.Option(option.flag, metavar=metavar, help=text, show_default=False)]
    return Annotated[str | None, typer.Option(option.flag, metavar=metavar, help=text, show_default=False)]
