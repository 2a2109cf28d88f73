"""Code, tests and documents cite sections and decisions that exist, and nothing outside the repository."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
FOLDERS = ("mloc_prefect", "tests", "benchmarks", "docs", "flows", "blocks", "deploy", "samples", "templates")
SUFFIXES = frozenset({".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh"})

# A citation may go on in the next line of a docstring or comment.
GAP = r"\s+(?:#\s*)?"
NUMBERS = rf"\d+(?:\.\d+)?(?:(?:,{GAP}|{GAP}and{GAP}|-)\d+(?:\.\d+)?)*"
SECTIONS = re.compile(
    rf"\bprotocol,?{GAP}(?:section{GAP})?(?P<numbers>{NUMBERS})"
    rf"(?:,{GAP}(?P<list>quirk|transition){GAP}(?P<item>\d+)|,{GAP}later{GAP}part)?",
    re.IGNORECASE,
)
DECISIONS = re.compile(rf"\b(?:architecture,{GAP})?decisions?{GAP}(?P<numbers>{NUMBERS})", re.IGNORECASE)
TITLES = re.compile(
    r"\b(?:architecture|decisions)"
    rf'(?:,{GAP}"(?P<quoted>[^"]+)"|:{GAP}(?P<plain>[A-Z][^\]]*?)(?=\]|;))'
)

BRACKETS = re.compile(r"\[(?P<text>(?:protocol|architecture|decisions?)\b[^\]]*)\](?!\()", re.IGNORECASE)
"""What is meant as a citation; a link of a page has its target behind it."""

BARE = re.compile(
    r'\[(?P<number>[1-9]\.\d{1,2})\]\.?(?=\s*""")|#[^\n]*\[(?P<noted>[1-9]\.\d{1,2})\]\.?(?=$)', re.MULTILINE
)
"""A section without the name of its page, at the end of a docstring or comment."""

OUTSIDE = re.compile(r"""(?:\.\./|[\s"'`(\[])shared/\w|/\s*["']shared["']""")
"""A path into the folder that some checkouts have beside them."""

SKIPS = re.compile(r"pytest\.(?:skip\(|mark\.skip(?:if)?\([^\n]*reason=)")


class Pages(NamedTuple):
    """What can be cited.

    Attributes:
        sections: Numbers of the protocol's sections.
        items: Numbers of the entries of the numbered list in a section.
        decisions: Numbers of the decisions.
        titles: Second-level headings of the page of decisions.
    """

    sections: frozenset[str]
    items: dict[str, frozenset[int]]
    decisions: frozenset[int]
    titles: frozenset[str]


@cache
def pages() -> Pages:
    protocol, decisions = (_text(ROOT / "docs" / name) for name in ("protocol.md", "decisions.md"))
    parts = re.split(r"^#{2,3} (\d+(?:\.\d+)?)\.? .*$", protocol, flags=re.MULTILINE)
    items = {number: _entries(body) for number, body in zip(parts[1::2], parts[2::2], strict=True)}
    blocks = re.split(r"^## (.+)$", decisions, flags=re.MULTILINE)
    bodies = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    return Pages(frozenset(items), items, _entries(bodies["Decisions"]), frozenset(bodies))


def faults(text: str) -> list[str]:
    """Return what is wrong with the citations in `text`, each with its line."""
    found = [
        f"{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}: {why}"
        for pattern, judge in (
            (SECTIONS, _judge_sections),
            (DECISIONS, _judge_decisions),
            (TITLES, _judge_title),
            (BRACKETS, _judge_bracket),
            (BARE, _judge_bare),
        )
        for match in pattern.finditer(text)
        for why in judge(match)
    ]
    return sorted(found)


def _judge_sections(match: re.Match[str]) -> Iterator[str]:
    numbers = _numbers(match)
    for number in numbers:
        if number not in pages().sections:
            yield f"docs/protocol.md has no section {number}"
    if match["item"] and int(match["item"]) not in pages().items.get(numbers[-1], ()):
        yield f"section {numbers[-1]} of docs/protocol.md has no {match['list']} {match['item']}"


def _judge_decisions(match: re.Match[str]) -> Iterator[str]:
    for number in _numbers(match):
        if "." in number or int(number) not in pages().decisions:
            yield f"docs/decisions.md has no decision {number}"


def _judge_title(match: re.Match[str]) -> Iterator[str]:
    title = " ".join((match["quoted"] or match["plain"]).replace("\n#", "\n").split())
    if title not in pages().titles:
        yield f"docs/decisions.md has no section '{title}'"


def _judge_bracket(match: re.Match[str]) -> Iterator[str]:
    for piece in re.split(rf";{GAP}", match["text"]):
        if not any(pattern.fullmatch(piece) for pattern in (SECTIONS, DECISIONS)) and not TITLES.match(f"{piece}]"):
            yield "is not a citation, e.g. [protocol 2.6], [protocol 7, quirk 15], [decision 9]"


def _judge_bare(match: re.Match[str]) -> Iterator[str]:
    number = match["number"] or match["noted"]
    if number in pages().sections:
        yield f"names no page, write [protocol {number}]"


def _numbers(match: re.Match[str]) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", match["numbers"])


def _entries(body: str) -> frozenset[int]:
    return frozenset(int(number) for number in re.findall(r"^(\d+)\. ", body, re.MULTILINE))


def _files() -> list[Path]:
    """Return the text files of the repository, without this one, whose examples are wrong on purpose."""
    inside = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    named = [path for path in inside if path.suffix in SUFFIXES and "__pycache__" not in path.parts]
    top = [path for path in sorted(ROOT.iterdir()) if path.suffix in SUFFIXES or path.name == "Makefile"]
    return [path for path in (*named, *top, ROOT / ".ci" / "run") if path.is_file() and path != Path(__file__)]


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def test_citations_name_what_is_there() -> None:
    wrong = [f"{path.relative_to(ROOT)}:{fault}" for path in _files() for fault in faults(_text(path))]
    assert not wrong, "\n".join(wrong)


def test_citations_are_found() -> None:
    """Guards the test above: a pattern or a list of files that finds nothing would pass."""
    cited = {number for path in _files() for match in SECTIONS.finditer(_text(path)) for number in _numbers(match)}
    assert {"1.3", "2.6", "3.2", "4.2", "4.9", "5", "7"} <= cited
    assert sum(len(DECISIONS.findall(_text(path))) for path in _files() if path.suffix == ".py") > 3


def test_pages_are_complete() -> None:
    """The numbers are cited from outside, too, so that none may go."""
    protocol = {1: 6, 2: 7, 3: 2, 4: 9, 5: 0, 6: 0, 7: 0, 8: 0}
    wanted = {str(n) for n in protocol} | {f"{n}.{m}" for n, last in protocol.items() for m in range(1, last + 1)}
    assert pages().sections == wanted
    assert pages().items["7"] == frozenset(range(1, 19))
    assert pages().decisions == frozenset(range(1, 23))


def test_nothing_outside_the_repository_is_cited() -> None:
    """Only a test may look there, and it says so as a skip where nothing is."""
    wrong = []
    for path in _files():
        match = OUTSIDE.search(_text(path))
        excused = path.is_relative_to(ROOT / "tests") and SKIPS.search(_text(path))
        if match and not excused:
            wrong.append(f"{path.relative_to(ROOT)}:{_text(path).count(chr(10), 0, match.start()) + 1}")
    assert not wrong, "these need files that a clone does not have:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        '"""Sums. [protocol 2.6]."""',
        "# see protocol 4.2 and 4.9, and (protocol\n    # 4.4)",
        "[protocol 4.3-4.5]",
        "[protocol 4.2, later part]",
        "[protocol 7, quirk 15]",
        "[protocol 2.2, transition 6]",
        "Protocol, section 6: what is read",
        "(architecture, decisions 1 and 16)",
        "[decision 9]",
        '[protocol 2.2; architecture, "Stage run -> MLOC\n# record and messages"]',
        "[decisions: References]",
        "[protocol 3.2](protocol.md#32-channels) and [decisions](decisions.md)",
        'protocol: a Protocol with "protocol": 2, and [1.5, 1.6] of it',
    ],
)
def test_right_citations(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x\n[protocol 9.9]", "2: protocol 9.9: docs/protocol.md has no section 9.9"),
        ("[protocol 7, 13]", "1: protocol 7, 13: docs/protocol.md has no section 13"),
        ("[protocol 7, quirk 19]", "section 7 of docs/protocol.md has no quirk 19"),
        ("[protocol 2.2, transition 7]", "section 2.2 of docs/protocol.md has no transition 7"),
        ("[protocol of hosts]", "is not a citation"),
        ("architecture, decision 23", "docs/decisions.md has no decision 23"),
        ('architecture, "Outgoing"', "docs/decisions.md has no section 'Outgoing'"),
        ("[architecture: Layers]", "docs/decisions.md has no section 'Layers'"),
        ('"""Which engine runs it [4.2]."""', "names no page, write [protocol 4.2]"),
        ("x = 1  # as there [2.6]", "names no page, write [protocol 2.6]"),
    ],
)
def test_wrong_citations(text: str, why: str) -> None:
    assert any(why in fault for fault in faults(text)), faults(text)
