"""What the documentation names exists: paths, modules, flags, variables and types in backticks, and relative links.

    README.md CONTRIBUTING.md CHANGELOG.md docs/**/*.md

Paths are relative to the repository's root. A dotted name is a module, or something that stands in the module before
it. Nothing of the project is imported but the declaration of the settings, which is light.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from aegaeon.settings.options import OPTIONS

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = sorted(page.relative_to(ROOT) for page in (*map(ROOT.joinpath, TOP), *ROOT.glob("docs/**/*.md")))
PACKAGES = ("aegaeon", "sim", "benchmark", "plots", "tests")
SOURCES = (*PACKAGES, "profiles", "quick_model_loader/python", "quick_model_loader/core/src")
SUFFIXES = "py md rs json jsonl yaml toml sh c csv txt png pdf safetensors log"

OTHERS_FILES = frozenset(
    ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "pool.yaml")
)
"""Files of models and operators."""
MADE = frozenset(("benchmark/results/gpu.json", "plots/json", "plots/out", "profiles/<gpu>/<model>.json"))
"""What commands of the project make, and git ignores."""
OTHERS_PROGRAMS = frozenset(("cargo", "curl", "git", "kill", "pip", "ray", "ulimit"))
"""Their flags are not ours."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"\bAEGAEON_[A-Z_]*[A-Z]\b(?![*_])")
_DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
_TYPE = re.compile(r"[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+")
_FILE = re.compile(rf"[\w./*<>-]+\.(?:{SUFFIXES.replace(' ', '|')})")


# --- what there is


@cache
def sources() -> str:
    """All code, and what is run beside it, as one text."""
    kinds = {".py", ".rs", ".sh"}
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*.*") if file.suffix in kinds]
    own = Path(__file__)
    return "\n".join(file.read_text("utf-8") for file in (*files, ROOT / "Makefile") if file != own)


@cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sources()))


@cache
def known_flags() -> frozenset[str]:
    """Those of the settings, those that are written out somewhere, and those that typer makes of parameters."""
    settings = [option.flag for option in OPTIONS]
    commands = re.findall(r"^    (\w+): Annotated\[", (ROOT / "aegaeon/cli/app.py").read_text("utf-8"), re.MULTILINE)
    written = re.findall(r"""["'](--[a-z][a-z0-9-]*)["'=]""", sources())
    return frozenset([*settings, *written, *("--" + name.replace("_", "-") for name in commands), "--help"])


@cache
def known_variables() -> frozenset[str]:
    written = re.findall(r"""["'](AEGAEON_[A-Z_]+)["']""", sources())
    return frozenset([*written, *(option.variable for option in OPTIONS)])


def file_exists(name: str) -> bool:
    if name in MADE or name in OTHERS_FILES:
        return True
    return any(ROOT.glob(name.rstrip("/"))) if "*" in name else (ROOT / name).exists()


def module_exists(dotted: str) -> bool:
    """Whether folders and files lead to it; what is left of the name stands in the module that was found last."""
    place, rest = ROOT, dotted.split(".")
    while rest and (place / rest[0]).is_dir():
        place = place / rest.pop(0)
    if rest and (place / f"{rest[0]}.py").is_file():
        place = place / f"{rest.pop(0)}.py"
    elif (place / "__init__.py").is_file():
        place = place / "__init__.py"
    return not rest or (place.is_file() and all(re.search(rf"\b{word}\b", place.read_text("utf-8")) for word in rest))


@cache
def headings(page: Path) -> frozenset[str]:
    """The anchors of a page, as GitHub makes them."""
    counted: Counter[str] = Counter()
    found = []
    for title in re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{anchor}-{counted[anchor]}" if counted[anchor] else anchor)
        counted[anchor] += 1
    return frozenset(found)


# --- what a page names


def faults(text: str) -> list[str]:
    """What a page names in backticks, or tells to run, and there is not."""
    spans = [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]
    commands = [line for kind, body in _FENCE.findall(text) if kind == "sh" for line in body.splitlines()]
    return [
        *(fault for span in spans for fault in faults_of_span(span)),
        *(f"flag {flag}" for line in commands for flag in unknown_flags(line.split("  #")[0])),
    ]


def faults_of_span(span: str) -> Iterator[str]:
    yield from (f"flag {flag}" for flag in unknown_flags(span))
    yield from (f"variable {name}" for name in _VARIABLE.findall(span) if name not in known_variables())
    if _TYPE.fullmatch(span) and span not in words():
        yield f"type {span}"
    for token in span.split():
        token = token.rstrip("(),:;")
        if _DOTTED.fullmatch(token) and not _FILE.fullmatch(token):
            if not module_exists(token):
                yield f"module {token}"
        elif is_path(token) and not file_exists(token):
            yield f"path {token}"


def unknown_flags(command: str) -> list[str]:
    if command.split()[:1] and command.split()[0] in OTHERS_PROGRAMS:
        return []
    return [flag for flag in _FLAG.findall(command) if flag not in known_flags()]


def is_path(token: str) -> bool:
    """A file by its suffix, or something below a folder of the root; no URL, no path of another machine."""
    if token in MADE:
        return True
    if token.startswith(("/", "~", "$", ".", "-")):
        return False
    if "://" in token or re.search(r"[={}<>]|\.\.\.", token):
        return False
    first, slash, _ = token.partition("/")
    return bool(_FILE.fullmatch(token)) or (bool(slash) and (ROOT / first).is_dir())


def links(text: str) -> list[str]:
    """Relative ones, of text and pictures."""
    found = _LINK.findall(re.sub(r"`[^`]*`", "", _FENCE.sub("", text)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def link_is_good(link: str, page: Path) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return False
    return not anchor or (target.suffix == ".md" and anchor in headings(target))


# --- the pages


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_names_exists(page: Path) -> None:
    assert faults((ROOT / page).read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert [link for link in links(text) if not link_is_good(link, ROOT / page)] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text("utf-8")))
            ahead += [target for target in targets if target.suffix == ".md"]
    assert [str(page) for page in PAGES if page.parts[0] == "docs" and ROOT / page not in reached] == []


def test_what_is_excepted_is_named() -> None:
    text = "\n".join((ROOT / page).read_text("utf-8") for page in PAGES)
    assert [name for name in (*OTHERS_FILES, *MADE) if name not in text] == []


# --- the check itself


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("`aegaeon/scheduler/nothing.py`", "path aegaeon/scheduler/nothing.py"),
        ("`nothing.py`", "path nothing.py"),
        ("`tests/nowhere`", "path tests/nowhere"),
        ("`benchmark/*.nothing`", "path benchmark/*.nothing"),
        ("`python -m benchmark.nothing`", "module benchmark.nothing"),
        ("`aegaeon.core.event.Nothing`", "module aegaeon.core.event.Nothing"),
        ("`aegaeon.nothing`", "module aegaeon.nothing"),
        ("`--no-such-flag 3`", "flag --no-such-flag"),
        ("`aegaeon serve\n  --no-such-flag`", "flag --no-such-flag"),
        ("```sh\naegaeon serve --no-such-flag  # it --is told\n```", "flag --no-such-flag"),
        ("`AEGAEON_NOTHING=1`", "variable AEGAEON_NOTHING"),
        ("`NoSuchType`", "type NoSuchType"),
    ],
)
def test_a_wrong_name_is_found(text: str, fault: str) -> None:
    assert faults(text) == [fault]


@pytest.mark.parametrize(
    "text",
    [
        "`aegaeon/core/event.py`, `tests/`, `docs/policies/`, `docs/*.md`, `.importlinter`",
        "`aegaeon.core.event.TurnEnded`, `aegaeon.runtime.wire`",
        "`python -m benchmark.policies --part sweep`, `python3 -m sim.simulate`",
        "`--kv-cache SIZE`, `--prefill-chunk-tokens`, `AEGAEON_PORT=9000`, `AEGAEON_*`, `AEGAEON_LONG_TESTS=1`",
        "`/v1/models`, `tokens/s`, `http://127.0.0.1:8000`, `ray start --head`, `config.json`, `$XDG_CACHE_HOME`",
        "`StartTurn`, `DeviceLedger`",
    ],
)
def test_what_is_there_is_no_fault(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("link", "good"),
    [
        ("docs/api.md", True),
        ("docs/api.md#limits", True),
        ("docs/configuration.md#when-something-ends", True),
        ("#license", True),
        ("plots/figures/0.1.png", True),
        ("docs/nothing.md", False),
        ("docs/api.md#nothing", False),
        ("#nothing", False),
        ("LICENSE#nothing", False),
    ],
)
def test_a_wrong_link_is_found(link: str, good: bool) -> None:
    assert link_is_good(link, ROOT / "README.md") is good


def test_links_are_read_from_text_and_pictures_but_not_from_code() -> None:
    text = "[a](b.md) [`c`](d.md#e) ![f](g.png) [h](https://i) `[j](k.md)`\n```\n[l](m.md)\n```\n"
    assert links(text) == ["b.md", "d.md#e", "g.png"]
