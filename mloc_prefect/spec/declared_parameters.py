"""The block `params:` of a spec: names, types and defaults of what `${param.NAME}` reads, and the check of values."""

from __future__ import annotations

import json
import keyword
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.spec.diagnostic_report import shown
from mloc_prefect.spec.secrets import has_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.diagnostics.positions import PathPart, Positions
    from mloc_prefect.spec.diagnostic_report import DiagnosticReport

BLOCK = "params"
_FIELDS = ("type", "default", "description", "enum", "minimum", "maximum")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_WORDS = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_OTHER_NAMES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "map": "object",
    "mapping": "object",
}
_OWN_PREFIX = "mloc_"
_RESERVED = frozenset({"submission_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecParameter:
    """One parameter of a spec.

    Attributes:
        name: What stands after `param.`; a Python identifier.
        type: `string`, `integer`, `number`, `boolean`, `array` or `object`, as JSON Schema names them.
        default: Value of a run that gives none; None: each run must give one.
        description: For people.
        enum: The values that it may have; empty: any of the type.
        minimum: Smallest number, or None.
        maximum: Largest number, or None.
    """

    name: str
    type: str = "string"
    default: Any = None
    description: str = ""
    enum: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def is_secret(self) -> bool:
        """Whether its name is one whose values are not shown."""
        return has_secret({self.name: "x"})

    def fault(self, value: Any) -> str | None:
        """Return what is wrong with `value`, as the end of a sentence, or None."""
        if not _is_of(self.type, value):
            return f"must be {_WORDS[self.type]}"
        if self.enum and not any(_same(value, one) for one in self.enum):
            return f"must be one of {', '.join(json.dumps(one, ensure_ascii=False) for one in self.enum)}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}"
        return None

    def read(self, value: Any) -> Any:
        """Return `value` in the type of this parameter where a text says it (`"3"` is 3), else as it is."""
        if not isinstance(value, str) or self.type == "string":
            return value
        if self.type in {"integer", "number"} and not re.fullmatch(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", value):
            return value
        try:
            return json.loads(value.strip().removeprefix("+"))
        except ValueError:
            return value

    def schema(self, position: int) -> dict[str, Any]:
        """Return its JSON Schema, with the keys from which Prefect's UI makes a form field."""
        more = {"default": self.default, "description": self.description or None, "enum": list(self.enum) or None}
        more |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.is_secret:
            more |= {"default": None, "format": "password"}
        shape = {"title": self.name, "type": self.type, "position": position}
        return shape | {key: value for key, value in more.items() if value is not None}


def read_parameters(document: Any, positions: Positions, report: DiagnosticReport) -> tuple[SpecParameter, ...]:
    """Return what the block `params` of a document declares; faults are reported and their parameters left out."""
    if not isinstance(document, dict) or BLOCK not in document or document[BLOCK] is None:
        return ()
    block = document[BLOCK]
    if not isinstance(block, dict):
        at = positions.find((BLOCK,))
        fix = "write 'params: {topic: {type: string, default: tides}}'"
        report.error(
            "invalid-type",
            "params must be a mapping of names",
            (at.line, at.column),
            path=(BLOCK,),
            found=shown(block),
            suggestion=fix,
        )
        return ()
    reader = _BlockReader(positions, report)
    found = (reader.parameter(name, value) for name, value in block.items())
    return tuple(one for one in found if one is not None)


def bad_name(name: str) -> str | None:
    """Return why `name` cannot be that of a parameter, or None."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        return "the name of a parameter is made of letters, digits and '_', and is no word of Python"
    if name.startswith(_OWN_PREFIX) or name in _RESERVED:
        return f"'{name}' is a name of MLOC's own parameters"
    return None


def value_faults(
    declared: Sequence[SpecParameter], given: Mapping[str, Any], *, complete: bool = True
) -> dict[str, tuple[str, Any]]:
    """Return what is wrong with the values of a run, by parameter: the end of a sentence, and the value.

    Args:
        declared: The parameters.
        given: Values by name; those of no parameter are not looked at.
        complete: Whether a parameter without a value is a fault.
    """
    found: dict[str, tuple[str, Any]] = {}
    for one in declared:
        value = given.get(one.name)
        if value is None:
            if complete and one.default is None:
                found[one.name] = ("has no value", None)
        elif (fault := one.fault(one.read(value))) is not None:
            found[one.name] = (fault, value)
    return found


def bound_values(declared: Sequence[SpecParameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run in the types of the parameters, with defaults where none is given."""
    values = {name: value for name, value in given.items() if value is not None}
    for one in declared:
        if one.name in values:
            values[one.name] = one.read(values[one.name])
        elif one.default is not None:
            values[one.name] = one.default
    return values


def inferred(name: str, text: str | None) -> tuple[SpecParameter, Any]:
    """Return a parameter that no block declares, of the type that its value has, and that value.

    Args:
        name: Its name.
        text: Its value as given with `--param`, or None: a text that each run must give.
    """
    if text is None:
        return SpecParameter(name=name), None
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    kind = _kind_of(value)
    chosen = value if kind is not None else text
    return SpecParameter(name=name, type=kind or "string", default=chosen), chosen


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _kind_of(value: Any) -> str | None:
    """Return the type of a value; None for null, NaN and infinities."""
    if isinstance(value, float):
        return "number" if math.isfinite(value) else None
    return next((kind for kind in _TYPES if _is_of(kind, value)), None)


def _is_of(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, float) and not math.isfinite(value))


class _BlockReader:
    def __init__(self, positions: Positions, report: DiagnosticReport) -> None:
        self._positions, self._report = positions, report
        self._faults = 0

    def parameter(self, name: str, value: Any) -> SpecParameter | None:
        """Return the parameter of one entry, or None when it has a fault."""
        self._faults = 0
        path: tuple[PathPart, ...] = (BLOCK, name)
        if (why := bad_name(name)) is not None:
            self._error("bad-parameter", f"'{name}' cannot be a parameter: {why}", path, at_key=True)
            return None
        if value is None:
            return SpecParameter(name=name)
        if not isinstance(value, dict):  # `topic: tides` is short for a default
            return SpecParameter(name=name, type=_kind_of(value) or "string", default=value)
        return self._declared(name, value, path)

    def _declared(self, name: str, value: dict[str, Any], path: tuple[PathPart, ...]) -> SpecParameter | None:
        for field in value:
            if field not in _FIELDS:
                fix = did_you_mean(field, _FIELDS) or f"a parameter has {', '.join(_FIELDS)}"
                self._error("bad-parameter", f"Unknown field '{field}'", (*path, field), at_key=True, suggestion=fix)
        default = value.get("default")
        kind = self._kind(value, default, path)
        enum = self._enum(value, path)
        bounds = [self._bound(value, field, kind, path) for field in ("minimum", "maximum")]
        text = value.get("description")
        if text is not None and not isinstance(text, str):
            self._error("bad-parameter", "description must be text", (*path, "description"), found=shown(text))
        if self._faults or kind is None:
            return None
        made = SpecParameter(
            name=name,
            type=kind,
            default=default,
            description=str(text or "").strip(),
            enum=enum,
            minimum=bounds[0],
            maximum=bounds[1],
        )
        for index, one in enumerate(enum):
            if not _is_of(kind, one):
                self._error("bad-parameter", f"must be {_WORDS[kind]}", (*path, "enum", index), found=shown(one))
        if default is not None and (fault := made.fault(default)) is not None:
            quote = f"quote it: '{default}'" if kind == "string" and isinstance(default, (int, float)) else None
            self._error(
                "bad-parameter",
                f"The default of parameter '{name}' {fault}",
                (*path, "default"),
                found=shown(default),
                suggestion=quote,
            )
        return made if not self._faults else None

    def _kind(self, value: dict[str, Any], default: Any, path: tuple[PathPart, ...]) -> str | None:
        if "type" not in value:
            options = value.get("enum")
            sample = default if default is not None else options[0] if isinstance(options, list) and options else None
            return _kind_of(sample) or "string"
        kind = value["type"]
        if isinstance(kind, str) and kind in _TYPES:
            return kind
        known = _OTHER_NAMES.get(kind.lower()) if isinstance(kind, str) else None
        fix = (f"did you mean '{known}'?" if known else None) or did_you_mean(str(kind), _TYPES)
        fix = fix or f"the types are {', '.join(_TYPES)}"
        self._error("bad-parameter", f"Unknown type '{kind}'", (*path, "type"), suggestion=fix)
        return None

    def _enum(self, value: dict[str, Any], path: tuple[PathPart, ...]) -> tuple[Any, ...]:
        found = value.get("enum")
        if found is None:
            return ()
        if not isinstance(found, list) or not found:
            self._error("bad-parameter", "enum must be a list of values", (*path, "enum"), found=shown(found))
            return ()
        return tuple(found)

    def _bound(self, value: dict[str, Any], field: str, kind: str | None, path: tuple[PathPart, ...]) -> float | None:
        found = value.get(field)
        if found is None:
            return None
        if kind not in {"integer", "number", None}:
            self._error("bad-parameter", f"{field} is for numbers only", (*path, field), found=shown(found))
        elif not _is_of("number", found):
            self._error("bad-parameter", f"{field} must be a number", (*path, field), found=shown(found))
        else:
            number: float = found
            return number
        return None

    def _error(self, code: str, message: str, path: tuple[PathPart, ...], *, at_key: bool = False, **more: Any) -> None:
        self._faults += 1
        at = self._positions.find(path)
        position = (at.key_line, at.key_column) if at_key else (at.line, at.column)
        self._report.error(code, message, position, path=path, **more)
