"""What a YAML parser error means, in one line, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from yaml.error import Mark, MarkedYAMLError

    from mloc_prefect.spec.report import Report


class _Case(NamedTuple):
    """How one parser problem is shown.

    `begin` points at the start of the construct (an unclosed quote or bracket) instead of where parsing gave up.
    """

    code: str
    text: str
    help: str
    begin: bool = False


_INDENT_HELP = "check the indentation of this line against the lines above it"
_CASES: tuple[tuple[str, _Case], ...] = (
    (
        "found another document",
        _Case(
            "multiple-documents",
            "the text holds more than one document",
            "submit each document on its own; remove the line '---'",
        ),
    ),
    (
        "found undefined alias",
        _Case(
            "undefined-alias",
            "this alias names no anchor",
            "define it with '&name' before its first use, or quote a text that starts with '*'",
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
            "quote a text that contains ': ', or check the indentation",
        ),
    ),
    (
        "found a tab character",
        _Case("tab-indentation", "a tab stands where only spaces may indent", "replace the tab by spaces"),
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
            "unknown escape after a backslash in a double-quoted text",
            "double the backslash, or use single quotes",
        ),
    ),
    (
        "could not find expected ':'",
        _Case(
            "yaml-syntax",
            "a key without ':' after it",
            "write 'key: value' (with a blank after the colon), or check the indentation",
        ),
    ),
    ("did not find expected key", _Case("yaml-syntax", "this line does not fit the mapping around it", _INDENT_HELP)),
    (
        "did not find expected '-' indicator",
        _Case("yaml-syntax", "a list item must start with '- ' here", _INDENT_HELP),
    ),
    (
        "block sequence entries are not allowed",
        _Case("yaml-syntax", "a list cannot start on this line", "put '- ' items on lines of their own"),
    ),
    ("cannot start any token", _Case("yaml-syntax", "a text cannot start with this character", "quote the text")),
)


def explain(error: MarkedYAMLError, text: str, report: Report) -> None:
    """Report `error`; the message starts with MLOC's `Invalid YAML: `.

    The texts follow [protocol 1.3].
    """
    problem = error.problem or error.context or "cannot be parsed"
    mark = error.problem_mark or error.context_mark
    if "cannot start any token" in problem and _char(text, mark) == "\t":
        problem = "found a tab character"
    case = next((case for key, case in _CASES if key in problem), _Case("yaml-syntax", problem, ""))
    if case.begin and error.context_mark is not None:
        mark = error.context_mark
    context = f" ({error.context})" if case.code == "yaml-syntax" and error.context else ""
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    found = _char(text, mark) if "cannot start any token" in problem else None
    report.error(
        case.code,
        f"Invalid YAML: {case.text}{context}",
        place,
        found=f"'{found}'" if found else None,
        suggestion=case.help or None,
    )


def _char(text: str, mark: Mark | None) -> str | None:
    if mark is None:
        return None
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    return line[mark.column] if mark.column < len(line) else None
