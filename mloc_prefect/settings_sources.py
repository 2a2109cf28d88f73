"""Sources of settings, and the errors for values that cannot be read: each names the variable or key and its value.

Does not import pydantic on load, so that commands can find their home directory quickly.
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
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

_PAGE = "see docs/settings.md"
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")  # as tomllib writes it
_SHOWN = 80
_NOT_HERE = "must be a path of this machine, not a URL"
_STORES = "results go to an object store with output.destination.path in the spec"


def default_home() -> Path:
    """Return the state directory: `MLOC_HOME`, default `~/.mloc`.

    Raises:
        SettingsError: It is a URL, or starts with `~`, and that user has no home directory.
    """
    raw = os.environ.get("MLOC_HOME")
    given = local_path(raw) if raw else None
    if raw and given is None:
        raise SettingsError(f"setting MLOC_HOME: {_NOT_HERE}, found {raw!r}", hint=_PAGE)
    try:
        return Path(given or Path.home() / ".mloc").expanduser().absolute()
    except RuntimeError:
        found = f", found {given!r}" if given else ""
        raise SettingsError(f"setting MLOC_HOME: this user has no home directory{found}", hint=_PAGE) from None


def folder_text(value: object) -> object:
    """Return the value of a setting that is a path: a file URL as a path, everything else unchanged.

    Raises:
        PydanticCustomError: It is a URL of another kind, which pathlib would take for a relative path.
    """
    from pydantic_core import PydanticCustomError

    path = local_path(str(value)) if isinstance(value, str | Path) else None
    if path is None and isinstance(value, str | Path):
        raise PydanticCustomError("not_here", "{rule}", {"rule": _NOT_HERE})
    return value if path is None or path == str(value) else path


def config_file() -> Path:
    """Return the path of the config file, which may not exist."""
    return default_home() / "config.toml"


def fault(error: Exception, fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> SettingsError:
    """Turn an error of reading the settings into one for the user.

    Args:
        error: The error of pydantic, pydantic-settings or tomllib.
        fields: Fields of the settings.
        given: Values that the caller passed, by field.
    """
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _invalid(error, fields, given)
    if isinstance(error, tomllib.TOMLDecodeError):
        return SettingsError(_toml_text(str(error)), hint="fix the file; docs/settings.md has an example")
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
    """Yield a warning for each key of the config file that is not a setting; nothing if the file cannot be read."""
    try:
        text = config_file().read_text(encoding="utf-8")
        keys = tomllib.loads(text)
    except (OSError, ValueError, SettingsError):  # reading the settings reports this error
        return
    known = {name.lower() for field, info in fields.items() for name in _names(field, info)}
    for key in keys:
        if key.lower() not in known:
            near = difflib.get_close_matches(key.lower(), list(fields), n=1)
            guess = f"; did you mean '{near[0]}'?" if near else ""
            yield f"{config_file()}{_line_of(key, text)}: unknown setting '{key}' is ignored{guess}"


def origin(name: str, info: FieldInfo, given: Mapping[str, Any]) -> tuple[str, Any]:
    """Return where a setting was set, as text, and its raw value there."""
    if name in given:
        return name, given[name]
    environ = {key.lower(): (key, value) for key, value in os.environ.items() if value}
    keys: dict[str, tuple[str, Any]] = {}
    with suppress(OSError, ValueError):
        keys = {key.lower(): (key, value) for key, value in tomllib.loads(config_file().read_text("utf-8")).items()}
    for alias in _names(name, info)[:-1]:  # without the field name: $HOME and $TOKEN are not settings
        if alias.lower() in environ:
            return environ[alias.lower()]
    for alias in _names(name, info):
        if alias.lower() in keys:
            key, value = keys[alias.lower()]
            return f"{key} in {config_file()}", value
    return _names(name, info)[0], None


def _toml_text(message: str) -> str:
    position = _POSITION.search(message)
    if position is None:  # "(at end of document)"
        return f"{config_file()}: {message}"
    return f"{config_file()}:{position[1]}:{position[2]}: {message[: position.start()]}"


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
        hints[_STORES if (name, row["type"]) == ("results_dir", "not_here") else _hint(fields[name])] = None
    return SettingsError("; ".join(texts), hint=next(iter(hints)) if len(hints) == 1 else _PAGE)


def _names(name: str, info: FieldInfo) -> tuple[str, ...]:
    """Return all names of a setting: its variables in order of precedence, then its field name."""
    choices = getattr(info.validation_alias, "choices", ())
    return *(str(choice) for choice in choices), name


def _found(value: Any, info: FieldInfo) -> str:
    """Return the value for a message; secrets are left out."""
    if "Secret" in str(info.annotation):
        return ""
    text = repr(value)
    return f", found {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"


def _hint(info: FieldInfo) -> str:
    return f"{info.description} {_PAGE.capitalize()}" if info.description else _PAGE


def _line_of(key: str, text: str) -> str:
    """Return `:line:column` of a top-level key, or "" if it is written in an unusual form."""
    quoted = re.escape(key)
    found = re.search(rf"^[ \t]*\[?[ \t]*[\"']?({quoted})[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    if found is None:
        return ""
    line = text.count("\n", 0, found.start(1)) + 1
    return f":{line}:{found.start(1) - (text.rfind(chr(10), 0, found.start(1)) + 1) + 1}"
