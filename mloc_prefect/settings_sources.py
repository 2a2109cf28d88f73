"""Where settings come from, and what is said of those that cannot be read: the variable or key that was set, its value.

Loaded without pydantic, so that a command can ask for its home at no cost.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

_PAGE = "see docs/settings.md"
_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")  # how tomllib tells the place
_SHOWN = 80


def default_home() -> Path:
    """Return the state directory: `MLOC_HOME`, default `~/.mloc`.

    Raises:
        SettingsError: It starts with `~`, and that user has no home.
    """
    given = os.environ.get("MLOC_HOME")
    try:
        return Path(given or Path.home() / ".mloc").expanduser().absolute()
    except RuntimeError:
        found = f", found {given!r}" if given else ""
        raise SettingsError(f"setting MLOC_HOME: there is no home directory of this user{found}", hint=_PAGE) from None


def config_file() -> Path:
    """Return where settings may be kept; it need not be there."""
    return default_home() / "config.toml"


def fault(error: Exception, fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> SettingsError:
    """Return what a user needs to know of an error of reading the settings.

    Args:
        error: What pydantic, pydantic-settings or tomllib raised.
        fields: Fields of the settings.
        given: Values given by the caller, by field.
    """
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _invalid(error, fields, given)
    if isinstance(error, tomllib.TOMLDecodeError):
        return SettingsError(_toml_text(str(error)), hint="correct it; docs/settings.md has an example")
    if isinstance(error, OSError):
        return SettingsError(f"{config_file()} cannot be read: {error.strerror}")
    if isinstance(error, UnicodeDecodeError):
        return SettingsError(f"{config_file()} is not UTF-8: {error.reason} at byte {error.start}")
    name = match[1] if (match := re.search(r'field "(\w+)"', str(error))) else ""
    if name not in fields:
        return SettingsError(f"settings cannot be read: {error}", hint=_PAGE)
    where, value = origin(name, fields[name], {})
    text = f"setting {where}: not JSON ({error.__cause__})"
    return SettingsError(text + _found(value, fields[name]), hint=_hint(fields[name]))


def unknown_keys(fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    """Yield a line for each key of the config file that is no setting; nothing when the file cannot be read."""
    try:
        text = config_file().read_text(encoding="utf-8")
        keys = tomllib.loads(text)
    except (OSError, ValueError, SettingsError):  # the settings themselves tell that
        return
    known = {name.lower() for field, info in fields.items() for name in _names(field, info)}
    for key in keys:
        if key.lower() not in known:
            near = difflib.get_close_matches(key.lower(), list(fields), n=1)
            guess = f"; did you mean '{near[0]}'?" if near else ""
            yield f"{config_file()}{_line_of(key, text)}: unknown setting '{key}' is ignored{guess}"


def origin(name: str, info: FieldInfo, given: Mapping[str, Any]) -> tuple[str, Any]:
    """Return in words where the value in force of a setting was given, and the value as it stands there."""
    if name in given:
        return name, given[name]
    environ = {key.lower(): (key, value) for key, value in os.environ.items() if value}
    keys: dict[str, tuple[str, Any]] = {}
    with suppress(OSError, ValueError):
        keys = {key.lower(): (key, value) for key, value in tomllib.loads(config_file().read_text("utf-8")).items()}
    for alias in _names(name, info)[:-1]:  # not the key: $HOME and $TOKEN are no settings
        if alias.lower() in environ:
            return environ[alias.lower()]
    for alias in _names(name, info):
        if alias.lower() in keys:
            key, value = keys[alias.lower()]
            return f"{key} in {config_file()}", value
    return _names(name, info)[0], None


def _toml_text(message: str) -> str:
    place = _PLACE.search(message)
    if place is None:  # "(at end of document)"
        return f"{config_file()}: {message}"
    return f"{config_file()}:{place[1]}:{place[2]}: {message[: place.start()]}"


def _invalid(error: ValidationError, fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> SettingsError:
    texts: dict[str, None] = {}
    hints: dict[str, None] = {}
    for row in error.errors():
        first, *inner = row["loc"]
        name = next((n for n, info in fields.items() if first in _names(n, info)), None)
        if name is None:
            texts[f"setting {first}: {row['msg']}"] = None
            continue
        where, _ = origin(name, fields[name], given)
        what = "must be a path" if row["type"] == "path_type" else row["msg"].replace("Input should", "must")
        what = what.partition(", unable to parse")[0]
        key = "".join(f".{part}" for part in inner)
        texts[f"setting {where}{f' ({key[1:]})' if key else ''}: {what}{_found(row['input'], fields[name])}"] = None
        hints[_hint(fields[name])] = None
    return SettingsError("; ".join(texts), hint=next(iter(hints)) if len(hints) == 1 else _PAGE)


def _names(name: str, info: FieldInfo) -> tuple[str, ...]:
    """Return all names of a setting: variables, the first that is set counts, then its key."""
    choices = getattr(info.validation_alias, "choices", ())
    return *(str(choice) for choice in choices), name


def _found(value: Any, info: FieldInfo) -> str:
    """Return the value for a message; those of secrets are not shown."""
    if "Secret" in str(info.annotation):
        return ""
    text = repr(value)
    return f", found {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"


def _hint(info: FieldInfo) -> str:
    return f"{info.description} {_PAGE.capitalize()}" if info.description else _PAGE


def _line_of(key: str, text: str) -> str:
    """Return `:line:column` of a key of the first level, "" when it is written in some other way."""
    quoted = re.escape(key)
    found = re.search(rf"^[ \t]*\[?[ \t]*[\"']?({quoted})[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    if found is None:
        return ""
    line = text.count("\n", 0, found.start(1)) + 1
    return f":{line}:{found.start(1) - (text.rfind(chr(10), 0, found.start(1)) + 1) + 1}"
