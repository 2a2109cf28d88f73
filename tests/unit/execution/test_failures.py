"""Exceptions -> failures: the kind decides about retries, the message is for the user."""

from __future__ import annotations

import errno

import pytest

from mloc_prefect import __version__
from mloc_prefect.errors import ArtifactError, ExecutionError, ExecutionFailure, MissingExtraError, PlanError
from mloc_prefect.execution.failures import breaks_host, failure_of, looks_out_of_memory
from mloc_prefect.execution.host.loading import load_class
from mloc_prefect.execution.protocol import Cancelled, UserError


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("no column\n 'x'"), "user", "no column 'x'"),
        (UserError("the text 'out of memory' is in your prompt"), "user", "the text 'out of memory' is in your prompt"),
        (ExecutionError("final", retryable=False), "user", "final"),
        (ExecutionError("may pass"), "error", "may pass"),
        (PlanError("not here"), "user", "not here"),
        (ArtifactError("disk full"), "error", "disk full"),
        (MissingExtraError("no vllm", hint="mloc env create vllm"), "missing", "no vllm"),
        (ModuleNotFoundError("x", name="trl.core"), "missing", "the library 'trl' is not installed"),
        (ImportError("libcuda.so: cannot open", name="torch"), "missing", "libcuda.so: cannot open"),
        (RuntimeError("x " * 3000), "error", "RuntimeError: x x"),
        (ValueError(), "error", "ValueError"),
        (SystemExit(3), "error", "sys.exit(3)"),
        (MemoryError(), "oom", "out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom", "Tried to allocate"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "oom", "DefaultCPUAllocator"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom", "Cannot allocate memory"),
        (ValueError("Unable to allocate 8.00 GiB for an array with shape (1,)"), "oom", "8.00 GiB"),
        (Cancelled(), "cancelled", "the task was cancelled"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_kinds(error: BaseException, kind: str, message: str) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert message in failure.message
    assert "\n" not in failure.message
    assert len(failure.message) < 2100
    assert failure.retryable is (kind in {"error", "oom"})
    assert ExecutionFailure.from_wire(failure.to_wire()) == failure


def test_hints() -> None:
    for name in ("trl", "matplotlib", "tensorboard.compat"):
        assert failure_of(ModuleNotFoundError("x", name=name)).hint == "pip install 'mloc-prefect[train]'"
    assert failure_of(ModuleNotFoundError("x", name="peft")).hint == "pip install 'mloc-prefect[transformers]'"
    assert failure_of(ModuleNotFoundError("x", name="unheard_of")).hint is None
    assert failure_of(MissingExtraError("x", hint="h")).hint == "h"


def test_memory_that_ran_out_further_down() -> None:
    def engine() -> None:
        try:
            raise OutOfMemoryError("CUDA out of memory")
        except RuntimeError as error:
            raise RuntimeError("the engine died") from error

    with pytest.raises(RuntimeError) as caught:
        engine()
    assert failure_of(caught.value).kind == "oom"
    assert breaks_host(caught.value)


def test_only_users_mistakes_have_no_traceback() -> None:
    assert failure_of(UserError("x")).traceback is None
    assert "RuntimeError: x" in (failure_of(RuntimeError("x")).traceback or "")


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (MemoryError(), True),
        (ModuleNotFoundError("x", name="trl"), True),
        (RuntimeError("shape mismatch"), False),
        (UserError("CUDA error: no such thing in your file"), False),
        (Cancelled(), False),
    ],
    ids=repr,
)
def test_what_makes_a_host_useless(error: BaseException, broken: bool) -> None:
    assert breaks_host(error) is broken


def test_last_lines_of_a_log() -> None:
    assert looks_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'\nFatal Python error")
    assert looks_out_of_memory("Traceback ...\nMemoryError")
    assert not looks_out_of_memory("Killed")


def test_loading() -> None:
    assert load_class("mloc_prefect.executors.echo:EchoExecutor").__name__ == "EchoExecutor"
    with pytest.raises(MissingExtraError, match="no class 'Nothing'"):
        load_class("mloc_prefect.executors.echo:Nothing")
    with pytest.raises(ModuleNotFoundError) as caught:
        load_class("mloc_prefect.executors.not_written:X")
    text = f"this version ({__version__}) plans such tasks but has no executor for them"
    assert failure_of(caught.value).message == text, "no name of a module that the user cannot know"
    other = ModuleNotFoundError("no", name="mloc_prefect.gone")
    assert failure_of(other).message == "this installation has no mloc_prefect.gone"
