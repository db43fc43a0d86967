"""The table of every setting in ``docs/configuration.md``: ``python -m aegaeon.settings.reference FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

from aegaeon.settings.options import Option, OptionKind, Scope, in_scope
from aegaeon.settings.sizes import format_bytes

BEGIN = "<!-- begin of the generated table -->"
END = "<!-- end of the generated table -->"


def reference() -> str:
    """Markdown: for each scope, a table of key, flag, variable, default and meaning."""
    return "\n".join(line for scope in Scope for line in _section(scope))


def replace_reference(document: str) -> str:
    """The document with the tables between its two markers made anew; raises ``ValueError`` without markers."""
    head, rest = document.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{reference()}\n{END}{tail}"


def describe_default(option: Option) -> str:
    """The default as one would write it."""
    default = option.default
    if option.auto and default in (None, ()):
        return option.auto
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int) and option.kind is OptionKind.BYTES:
        return format_bytes(default).replace(" ", "")
    return str(default)


def _section(scope: Scope) -> list[str]:
    head = [f"### {scope.value}", "", "| key | flag | variable | default | meaning |", "|---|---|---|---|---|"]
    return [*head, *map(_row, in_scope(scope)), ""]


def _row(option: Option) -> str:
    flag = option.flag if option.kind is OptionKind.SWITCH else f"{option.flag} {option.kind.value}".replace("|", "\\|")
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    cells = (f"`{option.key}`", f"`{flag}`", f"`{option.variable}`", describe_default(option), option.help + choices)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(replace_reference(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
