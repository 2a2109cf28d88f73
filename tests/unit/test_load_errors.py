"""What loaders raise for bad files, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.load_errors import fault_of, load_errors

SHAPES = "its weights have other shapes than its config.json says"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Error(s) in loading state_dict for X:\n size mismatch for a.weight: copying ..."), SHAPES),
        (RuntimeError("PytorchStreamReader failed finding central directory"), "its weights are damaged or cut short"),
        (EOFError(), "its weights are damaged or cut short: a file ends too early"),
        (OSError("no file named model.safetensors"), "no file named model.safetensors"),
        (RuntimeError("CUDA error: an illegal memory access"), None),
        (MemoryError("lack"), None),
    ],
)
def test_what_is_said(error: Exception, reason: str | None, tmp_path: Path) -> None:
    found = fault_of(error, str(tmp_path))
    assert found is None if reason is None else (found or "").startswith(reason)


def test_the_folder_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, load_errors(str(tmp_path), "cannot load {}"):
        raise OSError(f"{tmp_path} is empty")
    assert str(caught.value) == f"cannot load {tmp_path} is empty"
    with pytest.raises(ZeroDivisionError), load_errors(str(tmp_path)):
        raise ZeroDivisionError
