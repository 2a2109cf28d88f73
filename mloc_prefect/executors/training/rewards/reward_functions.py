"""Rewards that are functions of users, from modules that the operator allows."""

from __future__ import annotations

import importlib
import inspect
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.common.spec_reader import SpecReader

_MISTAKES = (TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError)
"""What a function raises whenever it gets the same answers; other errors, such as of a network, may pass."""

_FORM = "def {name}(*, prompts, completions, rows, ...)"


def function_reward(path: str, rule: SpecReader, allowed: Sequence[str]) -> Callable[..., list[Any]]:
    """Return the reward that calls the function at `path`.

    Args:
        path: `package.module:function`.
        rule: One of `spec.rewards`.
        allowed: Modules whose functions specs may name.

    Raises:
        UserError: The module may not be used, or has no such function, or the function has other arguments.
    """
    module, _, name = path.partition(":")
    if not any(module == a or module.startswith(f"{a}.") for a in allowed):
        raise UserError(
            f"{rule.path}.path names module '{module}', which specs may not run; the operator can allow it with "
            f"MLOC_ALLOWED_REWARDS={module}"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError, NameError) as error:
        raise UserError(f"{rule.path}.path {path} cannot be imported: {one_line(error, 300)}") from error
    options = dict(rule.child("options").data)
    _check_form(path, name, function, options)

    def reward(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Any]:
        try:
            given = function(prompts=list(prompts), completions=list(answers), rows=list(rows), **options)
        except _MISTAKES as error:
            text = one_line(f"{type(error).__name__}: {error}", 300)
            where = _place(error, function)
            raise UserError(f"reward '{path}' failed for {len(answers)} answers at {where}: {text}") from error
        return _numbers(path, given)

    return reward


def _place(error: BaseException, function: Any) -> str:
    """Return file and line at which `function` failed: in its own file if it is in the traceback, else the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frame = ([f for f in frames if f.filename == file] or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _check_form(path: str, name: str, function: Any, options: dict[str, Any]) -> None:
    if not callable(function):
        raise UserError(f"reward '{path}' is no function: {one_line(repr(function), 80)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"reward '{path}' is async; write it as a plain function")
    try:
        form = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function without a signature
        return
    try:
        form.bind(prompts=[], completions=[], rows=[], **options)
    except TypeError as error:
        wanted = _FORM.format(name=name)
        raise UserError(f"reward '{path}' cannot be called as {wanted}: {one_line(error, 200)}") from None


def _numbers(path: str, given: Any) -> list[Any]:
    """Return what a function gave as a list; arrays and tensors count, texts and mappings do not."""
    if inspect.isawaitable(given):
        if inspect.iscoroutine(given):
            given.close()
        raise UserError(f"reward '{path}' is async; write it as a plain function")
    found = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(found, (str, bytes, dict)) or not hasattr(found, "__iter__"):
        shown = one_line(repr(given), 80)
        raise UserError(f"reward '{path}' gave {shown}, which is no list of numbers: it has to return one per answer")
    return list(found)
