"""Types of single fields: what users may write, and what is said when they wrote something else.

Every field accepts what MLOC accepts: numbers may be written as text (`"8"`, and `5e-7`, which YAML 1.1 reads as text),
`null` means "not given", and a text with `${...}` passes when the spec is loaded, because its value comes from an
earlier stage. With `context={"resolved": True}` such a text is a fault like any other.

The first choice of each union runs in Rust; the Python functions are called only for values that it does not take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic_core import PydanticCustomError, PydanticUseDefault, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

PLACEHOLDER = "${"
FAULT = "fault"
"""Label of the union choice whose error carries our own code and message."""

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_PLACEHOLDER_JSON = {"type": "string", "pattern": r"\$\{[^}]+\}"}
_SIZES = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def is_deferred(value: Any, info: core_schema.ValidationInfo | None = None) -> bool:
    """Whether `value` comes from an earlier stage, and stages may still be open."""
    return (
        isinstance(value, str) and PLACEHOLDER in value and not (info and info.context and info.context.get("resolved"))
    )


def fault(code: str, message: str) -> NoReturn:
    """Refuse the value; a `message` that starts with "must" gets the field's name in front.

    Raises:
        PydanticCustomError: Always.
    """
    raise PydanticCustomError(code, message)


def _absent(value: Any, info: core_schema.ValidationInfo) -> None:
    """Let the field keep its default when the value is null or comes later."""
    if value is None or is_deferred(value, info):
        raise PydanticUseDefault


@dataclass(frozen=True, slots=True)
class Numeric:
    """A number, or a text that spells one.

    Attributes:
        whole: Only whole numbers.
        ge: Smallest allowed value.
        gt: Lower bound that is itself not allowed.
        le: Largest allowed value.
        lt: Upper bound that is itself not allowed.
        lenient: MLOC ignores a value that it cannot read, so it is a warning and the default holds.
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
        """Return the rule in words, e.g. `must be a number, at least 0 and at most 1`."""
        kind = "a whole number" if self.whole else "a number"
        if self.ge is not None and self.le is not None:
            return f"must be {kind} from {self.ge:g} to {self.le:g}"
        limits = " and ".join(f"{_SIZES[name]} {bound:g}" for name, bound in self.bounds().items())
        rule = f"must be {kind}, {limits}" if limits else f"must be {kind}"
        return f"{rule}; it is ignored, as in MLOC" if self.lenient else rule

    def read(self, value: Any, info: core_schema.ValidationInfo) -> float:
        """Read what the fast path did not take.

        Raises:
            PydanticUseDefault: The value is null or comes later.
            PydanticCustomError: It is no number, or out of range.
        """
        _absent(value, info)
        code = "ignored-value" if self.lenient else "invalid-type"
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            fault(code, self.wanted())
        try:
            number = self._parse(value)
        except (ValueError, OverflowError):
            fault(code, self.wanted())
        if not self._fits(number):
            fault("ignored-value" if self.lenient else "out-of-range", self.wanted())
        return number

    def _parse(self, value: float | str) -> float:
        if self.whole and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)
        number = float(value)
        if not math.isfinite(number) or (self.whole and number != int(number)):
            raise ValueError(value)
        return int(number) if self.whole else number

    def _fits(self, number: float) -> bool:
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


def whole(*, ge: float | None = None, le: float | None = None, lenient: bool = False) -> Numeric:
    """Return the type of a whole number."""
    return Numeric(True, ge=ge, le=le, lenient=lenient)


def number(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Numeric:
    """Return the type of a finite number."""
    return Numeric(False, ge=ge, gt=gt, le=le, lt=lt)


@dataclass(frozen=True, slots=True)
class _Truth:
    def read(self, value: Any, info: core_schema.ValidationInfo) -> bool:
        _absent(value, info)
        word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
        if word not in _TRUE | _FALSE:
            fault("invalid-type", "must be true or false")
        return word in _TRUE

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.bool_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        words = {"enum": ["true", "false", "yes", "no", "on", "off"]}
        return {"anyOf": [{"type": "boolean"}, words, _PLACEHOLDER_JSON, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class Textual:
    """A text.

    Attributes:
        exact: Take nothing else; otherwise a number is read as its text (`revision: 1.0`).
        message: Said instead of "must be text".
        item: An entry of a list, which cannot be null.
    """

    exact: bool = False
    message: str = "must be text"
    item: bool = False

    def read(self, value: Any, info: core_schema.ValidationInfo) -> str:
        """Read what the fast path did not take.

        Raises:
            PydanticUseDefault: The value is null.
            PydanticCustomError: It is no text.
        """
        if not self.item:
            _absent(value, info)
        if self.exact or isinstance(value, bool) or not isinstance(value, (int, float)):
            fault("invalid-type", self.message)
        return str(value)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.str_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "null"] if self.exact else ["string", "number", "null"]}


@dataclass(frozen=True, slots=True)
class _Part:
    """A mapping or a list with a model of its own: null and `${...}` leave the default.

    Attributes:
        kind: The Python type that the value must have.
        message: Said when it has another one.
        falsy: Take every empty value (`{}`, 0, "") as not given, as MLOC does for `gpu`.
        item: An entry of a list, which cannot be null and has no default to keep.
    """

    kind: type
    message: str
    falsy: bool = False
    item: bool = False

    def read(
        self, value: Any, handler: core_schema.ValidatorFunctionWrapHandler, info: core_schema.ValidationInfo
    ) -> Any:
        """Validate the parts of a value of the right kind.

        Raises:
            PydanticUseDefault: The value is null or comes later.
            PydanticCustomError: It is of another kind.
        """
        if isinstance(value, self.kind) and (value or not self.falsy):
            return handler(value)
        if self.item and is_deferred(value, info):
            return handler({})
        if not self.item:
            _absent(value, info)
        if self.falsy and not value:
            raise PydanticUseDefault
        fault("invalid-type", self.message)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_wrap_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), _PLACEHOLDER_JSON, {"type": "null"}]}


def block(*, falsy: bool = False, message: str = "must be a mapping") -> _Part:
    """Return the marker of a nested mapping."""
    return _Part(dict, message, falsy=falsy)


def item(message: str = "must be a mapping") -> _Part:
    """Return the marker of a mapping in a list."""
    return _Part(dict, message, item=True)


def rows(message: str = "must be a list") -> _Part:
    """Return the marker of a list."""
    return _Part(list, message)


@dataclass(frozen=True, slots=True)
class _OneOrMore:
    """A text, or a list of texts."""

    def read(self, value: Any, info: core_schema.ValidationInfo) -> str | list[str]:
        _absent(value, info)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return list(value)
        fault("invalid-type", "must be a text or a list of texts")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _union(core_schema.str_schema(strict=True), self.read)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


Flag = Annotated[bool, _Truth()]
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
