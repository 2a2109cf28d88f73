"""Task types of other distributions: what is used, and what is refused with its reason."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from mloc_prefect.cli.commands import doctor
from mloc_prefect.errors import UsageError
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks import registry, third_party
from mloc_prefect.tasks.base import TaskType
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.echo import ECHO
from mloc_prefect.tasks.third_party import ThirdPartyTypes, third_party_types

ECHO_VALUE = "mloc_prefect.tasks.echo:ECHO"


class StrictSpec(CommonSpec):
    """`spec` with a field that has no default."""

    marks: int


STRICT = TaskType("strict", StrictSpec, ECHO.executor, "cannot be used")


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, third_party.GROUP)


def test_what_an_entry_point_names_is_a_task_type() -> None:
    found = third_party_types([], [point("echo", ECHO_VALUE)])
    assert found.types == (ECHO,)
    assert found.sources == {"echo": ECHO_VALUE}
    assert found.faults == {}


@pytest.mark.parametrize(
    ("taken", "points", "text"),
    [
        (
            [],
            [("shout", "no_such_module:X")],
            "cannot be loaded: ModuleNotFoundError: No module named",
        ),
        ([], [("shout", "mloc_prefect.tasks.echo:EchoSpec")], "mloc_prefect.tasks.echo:EchoSpec is no TaskType"),
        ([], [("shout", ECHO_VALUE)], "mloc_prefect.tasks.echo:ECHO is the task type 'echo'"),
        (["echo"], [("echo", ECHO_VALUE)], "is not used: mloc-prefect has one of that name"),
        ([], [("echo", ECHO_VALUE), ("echo", ECHO_VALUE)], "uninstall one of them"),
        ([], [("strict", f"{__name__}:STRICT")], "its spec needs marks: give every field a default"),
    ],
)
def test_what_cannot_be_used_says_why(taken: list[str], points: list[tuple[str, str]], text: str) -> None:
    found = third_party_types(taken, [point(*names) for names in points])
    assert found.types == ()
    (fault,) = found.faults.values()
    assert text in fault


def test_a_spec_that_names_one_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ThirdPartyTypes(faults={"shout": "task type 'shout' of loud 1.0 cannot be loaded: x", "echo": "not used"})
    monkeypatch.setattr(registry, "THIRD_PARTY", broken)
    with pytest.raises(UsageError, match=r"task type 'shout' of loud 1\.0 cannot be loaded"):
        registry.task_type("shout")
    assert registry.task_type("echo") is ECHO, "what another distribution adds does not take ours away"
    told = {f.name: f for f in doctor._task_types(get_settings()) if f.level == "bad"}
    assert told["shout"].text == broken.faults["shout"]


class PlainSpec(CommonSpec):
    """`spec` with plain types of pydantic."""

    marks: int = 1
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("marks", "many", ("marks",)),
        ("words", "a", ("words",)),
        ("words", ["a", 1], ("words", 1)),
    ],
)
def test_plain_types_are_checked_too(field: str, value: object, path: tuple[str | int, ...]) -> None:
    found = check_spec(PlainSpec, {"taskType": "plain", field: value}, resolved=True).problems
    assert [(p.path, p.code, p.severity) for p in found] == [(path, "invalid-type", "error")]


def test_a_placeholder_in_a_plain_type_waits_for_its_value() -> None:
    spec = {"taskType": "plain", "marks": "${earlier.marks}"}
    planned = check_spec(PlainSpec, spec)
    assert planned.problems == ()
    assert planned.spec.marks == 1
    (found,) = check_spec(PlainSpec, spec, resolved=True).problems
    assert found.path == ("marks",)
