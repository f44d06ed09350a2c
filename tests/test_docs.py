"""The documents: every relative link leads somewhere, and every command line shown is one that the program takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from repr_ray import explain, launch, report
from repr_ray.study.reading import load

SKIPPED = {".venv", ".uv", ".git", "results", ".pytest_cache", "node_modules", "build", "dist"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not SKIPPED & set(p.relative_to(ROOT).parts[:1]))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors that a host makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", lambda m: "`" * len(m.group()), page.read_text(), flags=re.S)
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text)
    for link in (link for link in links if "://" not in link and not link.startswith("mailto:")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), f"{link}: outside the project"
        assert not anchor or anchor in anchors(target), link


def commands(text: str) -> Iterator[list[str]]:
    """The commands of this package in blocks and in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *inline]:
        found = re.search(r"(?:^|-- |bin/)(repr-ray|python -m repr_ray\.)\s*(launch|report|explain)\b(.*)", line)
        if found:
            words = shlex.split(found.group(3), comments=True)
            yield [found.group(2), *words[: next((n for n, w in enumerate(words) if w in (">", "|", "&&")), None)]]


def test_commands_are_found() -> None:
    text = (
        "```\nray job submit -- python -m repr_ray.launch --config x a=1  # why\n```\nsee `repr-ray explain a.b > c`"
    )
    assert list(commands(text)) == [["launch", "--config", "x", "a=1"], ["explain", "a.b"]]
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name, *words in commands(page.read_text()):
        if words == ["PATH"] or (not words and name == "report"):  # a command's name in a sentence
            continue
        if name == "launch":
            args = launch._parser("launch").parse_intermixed_args(words)
            load(args.config, args.overrides)
        elif name == "report":
            report._parser("report").parse_args(words)
        else:
            args = explain._parser("explain").parse_args(words)
            explain.explain(args.path)
