"""Every file in `tests/invalid` gives exactly the diagnostics that its header (or `<name>.expect`) lists.

`# expect: 12:7 unknown-stage` is an error at line 12, column 7; `# expect-warning: ...` a warning. Lines count from the
first line of the file, columns in characters. The places were set by hand, by reading the file.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.plan import check
from mloc_prefect.server.spec_errors import UNREADABLE

FOLDER = Path(__file__).parents[2] / "invalid"
FILES = sorted(FOLDER.glob("*.yaml"))
_EXPECTED = re.compile(r"^# expect(-warning)?: (\d+):(\d+) ([a-z0-9-]+)$", re.MULTILINE)

Place = tuple[str, int, int, str]


def _expected(file: Path) -> Counter[Place]:
    sidecar = file.with_suffix(".expect")
    header = sidecar.read_text(encoding="utf-8") if sidecar.exists() else file.read_text(encoding="utf-8")
    rows = _EXPECTED.findall(header)
    return Counter(
        ("warning" if warning else "error", int(line), int(column), code) for warning, line, column, code in rows
    )


def _found(diagnostics: tuple[Diagnostic, ...]) -> Counter[Place]:
    return Counter((d.severity, d.line, d.column, d.code) for d in diagnostics)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_diagnostics(file: Path) -> None:
    expected = _expected(file)
    plan, found = check(file.read_bytes(), file.name)
    assert _found(found) == expected, "\n".join(map(str, found))
    assert (plan is None) == any(severity == "error" for severity, *_ in expected)
    for one in found:
        assert str(one).startswith(f"{file.name}:{one.line}:{one.column}: {one.severity}[{one.code}]: ")
        assert "\n" not in one.message


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_strict_makes_every_warning_an_error(file: Path) -> None:
    plan, found = check(file.read_bytes(), file.name, strict=True)
    assert plan is None
    assert _found(found) == Counter({("error", *place): n for (_, *place), n in _expected(file).items()})


def test_the_collection_is_large_and_varied() -> None:
    expected = [place for file in FILES for place in _expected(file)]
    assert all(_expected(file) for file in FILES)
    assert len(FILES) >= 60
    assert len({code for *_, code in expected}) >= 25
    assert any(sum(n for (kind, *_), n in _expected(file).items() if kind == "error") == 5 for file in FILES)


def test_the_codes_of_unreadable_texts_are_those_with_the_message_of_the_original() -> None:
    found = [one for file in FILES for one in check(file.read_bytes(), file.name)[1]]
    assert {one.code for one in found if one.message.startswith("Invalid YAML: ")} == UNREADABLE
    assert not [one for one in found if one.code in UNREADABLE and not one.message.startswith("Invalid YAML: ")]
