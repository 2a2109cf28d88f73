"""Exceptions of an executor -> `ExecutionFailure`, inside the host. Standard library only."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator

from mloc_prefect import __version__
from mloc_prefect.errors import MissingExtraError, MlocError, PlanError, SpecError
from mloc_prefect.execution.protocol import Cancelled, ExecutionFailure, UserError

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
    """Return what the user and the stage runner need to know of `error`."""
    if isinstance(error, Cancelled):
        return ExecutionFailure(message="the task was cancelled", kind="cancelled", error_type="Cancelled")
    if isinstance(error, ImportError):
        return _missing(error)
    if isinstance(error, UserError):
        return ExecutionFailure(message=_line(error), kind="user", error_type="UserError")
    if isinstance(error, MlocError):
        return _ours(error)
    return _foreign(error)


def breaks_host(error: BaseException) -> bool:
    """Return whether the process is of no more use.

    Its memory ran out, or its device context is lost, or a library is missing (Python remembers what it did not find,
    so that a library installed since would stay unseen).
    """
    if isinstance(error, UserError | MlocError):
        return False
    if isinstance(error, ImportError) or _ran_out_of_memory(error):
        return True
    return any(_BROKEN_DEVICE.search(str(link)) for link in _chain(error))


def looks_out_of_memory(text: str) -> bool:
    """Return whether the last lines of a host's log say that memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def _ours(error: MlocError) -> ExecutionFailure:
    """A final error of our own tree is the user's to fix; any other may pass."""
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


def _missing(error: ImportError) -> ExecutionFailure:
    name = error.name or ""
    library = name.partition(".")[0]
    if library == "mloc_prefect":
        message = _unwritten(name) if isinstance(error, ModuleNotFoundError) else _line(error)
        hint = None
    elif isinstance(error, ModuleNotFoundError):
        message = f"the library '{library}' is not installed in the executor's environment"
        hint = f"pip install 'mloc-prefect[{_EXTRAS[library]}]'" if library in _EXTRAS else None
    else:
        message = f"a library of the executor's environment cannot be imported: {_line(error)}"
        hint = None
    return ExecutionFailure(
        message, kind="missing", error_type=type(error).__name__, traceback=_traceback(error), hint=hint
    )


def _unwritten(module: str) -> str:
    if module.startswith("mloc_prefect.executors."):
        return no_executor_text()
    return f"this installation has no {module}"


def no_executor_text() -> str:
    """Return what is said of task types that can be planned, and for which no executor has been written yet."""
    return f"this version ({__version__}) plans such tasks but has no executor for them"


def _foreign(error: BaseException) -> ExecutionFailure:
    name = type(error).__name__
    if _ran_out_of_memory(error):
        detail = _line(error)
        message = f"out of memory: {detail}" if detail else "out of memory"
        return ExecutionFailure(message, kind="oom", error_type=name, traceback=_traceback(error))
    if isinstance(error, SystemExit):
        message = f"the executor called sys.exit({error.code!r})"
    else:
        message = f"{name}: {_line(error)}" if str(error) else name
    return ExecutionFailure(message, kind="error", error_type=name, traceback=_traceback(error))


def _ran_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(link, MemoryError)
        or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
        or (not isinstance(link, UserError | MlocError) and _OUT_OF_MEMORY.search(str(link)) is not None)
        for link in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and what it came from; engines wrap the true cause."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _line(error: BaseException) -> str:
    """Return the text of `error` in one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _MESSAGE_LIMIT else f"{text[:_MESSAGE_LIMIT]} ..."


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-_TRACEBACK_LIMIT:]
