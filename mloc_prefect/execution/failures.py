"""Converts exceptions of an executor to `ExecutionFailure`, inside the host. Standard library only."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator

from mloc_prefect.errors import ExecutionFailure, MissingExtraError, MlocError, PlanError, SpecError
from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.version import __version__

_MESSAGE_LIMIT = 2_000
_TRACEBACK_LIMIT = 32_000

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can(?:'|no)t allocate memory|unable to allocate .* for an array|\bMemoryError\b|std::bad_alloc",
    re.IGNORECASE,
)
_BROKEN_DEVICE = re.compile(r"CUDA error|device-side assert|NCCL error|HIP error|EngineDeadError", re.IGNORECASE)

_EXTRAS = {
    "torch": "transformers",
    "transformers": "transformers",
    "datasets": "transformers",
    "accelerate": "transformers",
    "peft": "transformers",
    "trl": "train",
    "requests": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "qdrant_client": "rag",
    "sentence_transformers": "rag",
    "pydantic_ai": "agent",
    "s3fs": "s3",
    "paramiko": "sftp",
}


def failure_of(error: BaseException) -> ExecutionFailure:
    """Return the failure that describes `error` to the user and to the stage runner."""
    if isinstance(error, Cancelled):
        return ExecutionFailure(message="the task was cancelled", kind="cancelled", error_type="Cancelled")
    if isinstance(error, ImportError):
        return _import_failure(error)
    if isinstance(error, UserError):
        return ExecutionFailure(message=_message(error), kind="user", error_type="UserError")
    if isinstance(error, MlocError):
        return _own_failure(error)
    return _library_failure(error)


def breaks_host(error: BaseException) -> bool:
    """Return whether the process cannot run further tasks after `error`.

    This is the case when its memory ran out, its device context is lost, or a library is missing: Python caches failed
    imports, so that a library installed later would not be found.
    """
    if isinstance(error, UserError | MlocError):
        return False
    if isinstance(error, ImportError) or _ran_out_of_memory(error):
        return True
    return any(_BROKEN_DEVICE.search(str(cause)) for cause in cause_chain(error))


def looks_out_of_memory(text: str) -> bool:
    """Return whether the last lines of a host's log report that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def _own_failure(error: MlocError) -> ExecutionFailure:
    """Return the failure for an error of our own tree: the user must fix a final one, others may be retried."""
    if isinstance(error, MissingExtraError):
        return ExecutionFailure(error.message, kind="missing", error_type=type(error).__name__, hint=error.hint)
    final = isinstance(error, SpecError | PlanError) or getattr(error, "retryable", True) is False
    return ExecutionFailure(
        message=error.message,
        kind="user" if final else "error",
        error_type=type(error).__name__,
        traceback=None if final else _traceback(error),
        hint=error.hint,
    )


def _import_failure(error: ImportError) -> ExecutionFailure:
    name = error.name or ""
    library = name.partition(".")[0]
    if library == "mloc_prefect":
        message = _missing_module_text(name) if isinstance(error, ModuleNotFoundError) else _message(error)
        hint = None
    elif isinstance(error, ModuleNotFoundError):
        message = f"the library '{library}' is not installed in the executor's environment"
        hint = f"pip install 'mloc-prefect[{_EXTRAS[library]}]'" if library in _EXTRAS else None
    else:
        message = f"a library of the executor's environment cannot be imported: {_message(error)}"
        hint = None
    return ExecutionFailure(
        message, kind="missing", error_type=type(error).__name__, traceback=_traceback(error), hint=hint
    )


def _missing_module_text(module: str) -> str:
    if module.startswith("mloc_prefect.executors."):
        return no_executor_text()
    return f"this installation has no {module}"


def no_executor_text() -> str:
    """Return the message for task types that can be planned but have no executor yet."""
    return f"this version ({__version__}) plans such tasks but has no executor for them"


def _library_failure(error: BaseException) -> ExecutionFailure:
    name = type(error).__name__
    if _ran_out_of_memory(error):
        detail = _message(error)
        message = f"out of memory: {detail}" if detail else "out of memory"
        return ExecutionFailure(message, kind="oom", error_type=name, traceback=_traceback(error))
    if isinstance(error, SystemExit):
        message = f"the executor called sys.exit({error.code!r})"
    else:
        message = f"{name}: {_message(error)}" if str(error) else name
    return ExecutionFailure(message, kind="error", error_type=name, traceback=_traceback(error))


def _ran_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (not isinstance(cause, UserError | MlocError) and _OUT_OF_MEMORY.search(str(cause)) is not None)
        for cause in cause_chain(error)
    )


def cause_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and its causes, because engines wrap the true one."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def one_line(value: object, limit: int | None = None) -> str:
    """Return the text of an error or another value on one line, cut to `limit` characters."""
    return " ".join(str(value).split())[:limit]


def _message(error: BaseException) -> str:
    text = one_line(error)
    return text if len(text) <= _MESSAGE_LIMIT else f"{text[:_MESSAGE_LIMIT]} ..."


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_TRACEBACK_LIMIT:]
