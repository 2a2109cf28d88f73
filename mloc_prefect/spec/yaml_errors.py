"""Translates errors of the YAML parser to one-line messages with a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from yaml.error import Mark, MarkedYAMLError

    from mloc_prefect.spec.diagnostic_report import DiagnosticReport


class _Case(NamedTuple):
    """How one parser problem is reported.

    `begin`: point at the start of the construct (an unclosed quote or bracket) instead of where parsing stopped.
    """

    code: str
    text: str
    help: str
    begin: bool = False


_CURLY = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_CLOSERS = {"{": "}", "[": "]"}
_INDENT_HELP = "check the indentation of this line against the lines above it"
_CASES: tuple[tuple[str, _Case], ...] = (
    (
        "found another document",
        _Case(
            "multiple-documents",
            "the text holds more than one document",
            "submit each document separately; remove the line '---'",
        ),
    ),
    (
        "found undefined alias",
        _Case(
            "undefined-alias",
            "this alias names no anchor",
            "define it with '&name' before its first use, or quote text that starts with '*'",
        ),
    ),
    (
        "second occurrence",
        _Case("duplicate-anchor", "this anchor name is already used", "give each '&anchor' its own name"),
    ),
    (
        "mapping values are not allowed",
        _Case(
            "yaml-syntax",
            "a ':' cannot start a mapping here",
            "quote text that contains ': ', or check the indentation",
        ),
    ),
    (
        "found a tab character",
        _Case("tab-indentation", "a tab is used where only spaces may indent", "replace the tab by spaces"),
    ),
    (
        "did not find expected ',' or ']'",
        _Case(
            "unclosed-bracket",
            "this '[' list is not closed, or a ',' is missing in it",
            "close it with ']'",
            begin=True,
        ),
    ),
    (
        "did not find expected ',' or '}'",
        _Case(
            "unclosed-bracket",
            "this '{' mapping is not closed, or a ',' is missing in it",
            "close it with '}'",
            begin=True,
        ),
    ),
    (
        "found unexpected end of stream",
        _Case("unclosed-quote", "this quote is never closed", "add the closing quote", begin=True),
    ),
    (
        "found unexpected document indicator",
        _Case("unclosed-quote", "this quote is not closed before '---' or '...'", "add the closing quote", begin=True),
    ),
    (
        "found unknown escape character",
        _Case(
            "bad-escape",
            "unknown escape after a backslash in double quotes",
            "double the backslash, or use single quotes",
        ),
    ),
    (
        "could not find expected ':'",
        _Case(
            "yaml-syntax",
            "a key without ':' after it",
            "write 'key: value' (with a space after the colon), or check the indentation",
        ),
    ),
    ("did not find expected key", _Case("yaml-syntax", "this line does not fit the mapping around it", _INDENT_HELP)),
    (
        "did not find expected '-' indicator",
        _Case("yaml-syntax", "a list item must start with '- ' here", _INDENT_HELP),
    ),
    (
        "block sequence entries are not allowed",
        _Case("yaml-syntax", "a list cannot start on this line", "put each '- ' item on its own line"),
    ),
    ("cannot start any token", _Case("yaml-syntax", "text cannot start with this character", "quote the text")),
)


def explain(error: MarkedYAMLError, text: str, report: DiagnosticReport) -> None:
    """Report `error`; the message starts with MLOC's `Invalid YAML: ` [protocol 1.3]."""
    problem = error.problem or error.context or "cannot be parsed"
    mark = error.problem_mark or error.context_mark
    if "cannot start any token" in problem and _char(text, mark) == "\t":
        problem = "found a tab character"
    case = next((case for key, case in _CASES if key in problem), _Case("yaml-syntax", problem, ""))
    if case.begin and error.context_mark is not None:
        mark = error.context_mark
    context = f" ({error.context})" if case.code == "yaml-syntax" and error.context else ""
    position = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    found = _char(text, mark) if "cannot start any token" in problem else None
    report.error(
        case.code,
        f"Invalid YAML: {case.text}{context}",
        position,
        found=f"'{found}'" if found else None,
        suggestion=_closer_help(text, mark) if case.code == "unclosed-bracket" else case.help or None,
    )


def _closer_help(text: str, mark: Mark | None) -> str:
    """Return the fix for a '{' or '[' that is not closed: often it is, but the end is not read as it looks."""
    bracket = _char(text, mark) or "{"
    line = _line(text, mark)
    if quote := next((c for c in line if c in _CURLY), None):
        return f"write a straight quote (\" or ') instead of {quote}, which is a letter like others to YAML"
    if (comment := line.find(" #")) >= 0 and set("]}") & set(line[comment:]):
        return "' #' starts a comment, so the rest of the line is not read: quote the text, or move the comment"
    return f"close it with '{_CLOSERS.get(bracket, '}')}'"


def _line(text: str, mark: Mark | None) -> str:
    lines = text.splitlines()
    return lines[mark.line] if mark is not None and mark.line < len(lines) else ""


def _char(text: str, mark: Mark | None) -> str | None:
    line = _line(text, mark)
    return line[mark.column] if mark is not None and mark.column < len(line) else None
