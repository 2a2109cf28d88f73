"""Types of single fields: the values that users may write, and the error for all others.

Every field accepts what MLOC accepts: numbers may be written as text (`"8"`, and `5e-7`, which YAML 1.1 reads as text),
`null` means "not given", and text with `${...}` passes when the spec is loaded, because its value comes from an earlier
stage. With `context={"resolved": True}` such text is an error like any other.

The first choice of each union runs in Rust; the Python functions are called only for values that it rejects.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic_core import PydanticCustomError, PydanticUseDefault, core_schema

from mloc_prefect.tasks.chat_messages import ROLES, item_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

PLACEHOLDER = "${"
FAULT = "fault"
"""Label of the union choice whose error carries our own code and message."""

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})
_resolved: ContextVar[bool] = ContextVar("resolved", default=False)
_PLACEHOLDER_JSON = {"type": "string", "pattern": r"\$\{[^}]+\}"}
_SIZES = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def is_deferred(value: Any, info: core_schema.ValidationInfo | None = None) -> bool:
    """Return whether `value` comes from an earlier stage and placeholders are not resolved yet."""
    if not isinstance(value, str) or PLACEHOLDER not in value or _resolved.get():
        return False
    return not (info and info.context and info.context.get("resolved"))


@contextmanager
def placeholders_resolved(resolved: bool) -> Iterator[None]:
    """Let `is_deferred` say, in checks between fields too, whether `${...}` is plain text by now."""
    before = _resolved.set(resolved)
    try:
        yield
    finally:
        _resolved.reset(before)


def fault(code: str, message: str, *, wants: Literal["text", "list"] | None = None) -> NoReturn:
    """Reject the value; a `message` that starts with "must" is prefixed with the field's name.

    Args:
        code: Kebab-case name of the rule.
        message: One line.
        wants: What the field takes, if a common slip of YAML gives something else.

    Raises:
        PydanticCustomError: Always.
    """
    raise PydanticCustomError(code, message, {"wants": wants} if wants else None)


def _use_default_if_absent(value: Any, info: core_schema.ValidationInfo) -> None:
    """Let the field keep its default when the value is null or comes from an earlier stage."""
    if value is None or is_deferred(value, info):
        raise PydanticUseDefault


@dataclass(frozen=True, slots=True)
class Numeric:
    """A number, or text that spells one.

    Attributes:
        whole: Whether only whole numbers are allowed.
        ge: Smallest allowed value.
        gt: Lower bound that is itself not allowed.
        le: Largest allowed value.
        lt: Upper bound that is itself not allowed.
        lenient: Whether an invalid value is only a warning and the default applies, as MLOC ignores it.
    """

    whole: bool
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    lenient: bool = False

    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set."""
        return {name: bound for name in _SIZES if (bound := getattr(self, name)) is not None}

    def wanted(self) -> str:
        """Return the rule as text, e.g. `must be a number, at least 0 and at most 1`."""
        kind = "a whole number" if self.whole else "a number"
        if self.ge is not None and self.le is not None:
            return f"must be {kind} from {_written(self.ge)} to {_written(self.le)}"
        limits = " and ".join(f"{_SIZES[name]} {_written(bound)}" for name, bound in self.bounds().items())
        rule = f"must be {kind}, {limits}" if limits else f"must be {kind}"
        return f"{rule}; it is ignored, as in MLOC" if self.lenient else rule

    def read(self, value: Any, info: core_schema.ValidationInfo) -> float:
        """Read a value that the fast path rejected.

        Raises:
            PydanticUseDefault: The value is null or comes from an earlier stage.
            PydanticCustomError: It is not a number, or out of range.
        """
        _use_default_if_absent(value, info)
        code = "ignored-value" if self.lenient else "invalid-type"
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            fault(code, self.wanted())
        try:
            number = self._parse(value)
        except (ValueError, OverflowError):
            fault(code, self.wanted())
        if not self.allows(number):
            fault("ignored-value" if self.lenient else "out-of-range", self.wanted())
        return number

    def _parse(self, value: float | str) -> float:
        if self.whole and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)
        number = float(value)
        if not math.isfinite(number) or (self.whole and number != int(number)):
            raise ValueError(value)
        return int(number) if self.whole else number

    def allows(self, number: float) -> bool:
        """Return whether `number` is within the bounds."""
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        bounds: dict[str, Any] = self.bounds()
        fast: core_schema.CoreSchema = (
            core_schema.int_schema(strict=True, **bounds)
            if self.whole
            else core_schema.float_schema(strict=True, allow_inf_nan=False, **bounds)
        )
        return _union(fast, self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        limits = {names[name]: bound for name, bound in self.bounds().items()}
        spelled = {"type": "string", "pattern": r"^\s*[-+]?[0-9]", "description": "the number as text"}
        kind = {"type": "integer" if self.whole else "number", **limits}
        return {"anyOf": [kind, spelled, _PLACEHOLDER_JSON, {"type": "null"}]}


def _written(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def whole(*, ge: float | None = None, le: float | None = None, lenient: bool = False) -> Numeric:
    """Return the type of a whole number."""
    return Numeric(True, ge=ge, le=le, lenient=lenient)


def number(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Numeric:
    """Return the type of a finite number."""
    return Numeric(False, ge=ge, gt=gt, le=le, lt=lt)


@dataclass(frozen=True, slots=True)
class _Boolean:
    def read(self, value: Any, info: core_schema.ValidationInfo) -> bool:
        _use_default_if_absent(value, info)
        word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
        if word not in TRUE_WORDS | FALSE_WORDS:
            fault("invalid-type", "must be true or false")
        return word in TRUE_WORDS

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.bool_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        words = {"enum": ["true", "false", "yes", "no", "on", "off"]}
        return {"anyOf": [{"type": "boolean"}, words, _PLACEHOLDER_JSON, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class Textual:
    """Text.

    Attributes:
        exact: Whether only text is allowed; otherwise a number is read as its text (`revision: 1.0`).
        message: The error message.
        item: Whether it is an entry of a list, which cannot be null.
    """

    exact: bool = False
    message: str = "must be text"
    item: bool = False

    def read(self, value: Any, info: core_schema.ValidationInfo) -> str:
        """Read a value that the fast path rejected.

        Raises:
            PydanticUseDefault: The value is null.
            PydanticCustomError: It is not text.
        """
        if not self.item:
            _use_default_if_absent(value, info)
        if self.exact or isinstance(value, bool) or not isinstance(value, (int, float)):
            fault("invalid-type", self.message, wants="text")
        return str(value)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.str_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "null"] if self.exact else ["string", "number", "null"]}


@dataclass(frozen=True, slots=True)
class _Container:
    """A mapping or list with a model of its own: null and `${...}` leave the default.

    Attributes:
        kind: The Python type that the value must have.
        message: The error message.
        falsy: Whether every empty value (`{}`, 0, "") counts as not given, as in MLOC for `gpu`.
        item: Whether it is an entry of a list, which cannot be null and has no default.
    """

    kind: type
    message: str
    falsy: bool = False
    item: bool = False

    def read(
        self, value: Any, handler: core_schema.ValidatorFunctionWrapHandler, info: core_schema.ValidationInfo
    ) -> Any:
        """Validate the content of a value of the right type.

        Raises:
            PydanticUseDefault: The value is null or comes from an earlier stage.
            PydanticCustomError: It has another type.
        """
        if isinstance(value, self.kind) and (value or not self.falsy):
            return handler(value)
        if self.item and is_deferred(value, info):
            return handler({})
        if not self.item:
            _use_default_if_absent(value, info)
        if self.falsy and not value:
            raise PydanticUseDefault
        fault("invalid-type", self.message, wants="list" if self.kind is list else None)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_wrap_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), _PLACEHOLDER_JSON, {"type": "null"}]}


def block(*, falsy: bool = False, message: str = "must be a mapping") -> _Container:
    """Return the marker of a nested mapping."""
    return _Container(dict, message, falsy=falsy)


def item(message: str = "must be a mapping") -> _Container:
    """Return the marker of a mapping in a list."""
    return _Container(dict, message, item=True)


def rows(message: str = "must be a list") -> _Container:
    """Return the marker of a list."""
    return _Container(list, message)


@dataclass(frozen=True, slots=True)
class _OneOrMore:
    """Text, or a list of texts."""

    def read(self, value: Any, info: core_schema.ValidationInfo) -> str | list[str]:
        _use_default_if_absent(value, info)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return list(value)
        fault("invalid-type", "must be text or a list of texts", wants="text")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.str_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class _FlagOrText:
    """True, false, or text."""

    def read(self, value: Any, info: core_schema.ValidationInfo) -> bool:
        _use_default_if_absent(value, info)
        if isinstance(value, int) and str(value) in TRUE_WORDS | FALSE_WORDS:
            return bool(value)
        fault("invalid-type", "must be true, false, or text")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        fast = core_schema.union_schema([core_schema.bool_schema(strict=True), core_schema.str_schema(strict=True)])
        return _union(fast, self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["boolean", "string", "null"]}


@dataclass(frozen=True, slots=True)
class _PromptItem:
    """One entry of a list of prompts: text, messages, or a mapping that holds messages.

    Attributes:
        message: The error message for anything else.
    """

    message: str

    def read(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        found = item_fault(value)
        if found == "":
            fault("invalid-type", self.message)
        if found is not None and not (_has_placeholder(value) and not (info.context or {}).get("resolved")):
            fault("bad-messages", found)
        return value

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.str_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        message = {"type": "object", "properties": {"role": {"enum": list(ROLES)}, "from": {"type": "string"}}}
        messages = {"type": "array", "items": message, "minItems": 1}
        chat = {
            "type": "object",
            "properties": {
                "messages": messages,
                "conversations": messages,
                "prompt": {"anyOf": [{"type": "string"}, messages]},
                "system_prompt": {"type": ["string", "null"]},
                "tools": {"type": ["array", "null"], "items": {"type": "object"}},
            },
            "additionalProperties": False,
        }
        return {"anyOf": [{"type": "string"}, messages, chat]}


def prompt_item(message: str) -> _PromptItem:
    """Return the type of an entry of a list of prompts; `message` is the error for what is none."""
    return _PromptItem(message)


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_placeholder, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and PLACEHOLDER in value


Flag = Annotated[bool, _Boolean()]
FlagOrText = Annotated[bool | str, _FlagOrText()]
Text = Annotated[str, Textual()]
ExactText = Annotated[str, Textual(exact=True)]
ItemText = Annotated[str, Textual(item=True)]
Texts = Annotated[str | list[str], _OneOrMore()]
Count = Annotated[int, whole(ge=1)]
NotNegative = Annotated[int, whole(ge=0)]
Positive = Annotated[float, number(gt=0)]
Free = Annotated[dict[str, Any], block()]


def _union(fast: core_schema.CoreSchema, slow: Any) -> core_schema.CoreSchema:
    return core_schema.union_schema(
        [fast, (core_schema.with_info_plain_validator_function(slow), FAULT)], mode="left_to_right"
    )
