"""What loaders raise for bad files, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.load_errors import fault_of, load_errors, load_whole

SHAPES = "its weights have other shapes than its config.json says"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Error(s) in loading state_dict for X:\n size mismatch for a.weight: copying ..."), SHAPES),
        (RuntimeError("PytorchStreamReader failed finding central directory"), "its weights are damaged or cut short"),
        (EOFError(), "its weights are damaged or cut short: a file ends too early"),
        (OSError("no file named model.safetensors"), "no file named model.safetensors"),
        (AttributeError("module 'torch' has no attribute 'float99'"), "module 'torch' has no attribute 'float99'"),
        (RuntimeError("CUDA error: an illegal memory access"), None),
        (MemoryError("lack"), None),
    ],
)
def test_what_is_said(error: Exception, reason: str | None, tmp_path: Path) -> None:
    found = fault_of(error, str(tmp_path))
    assert found is None if reason is None else (found or "").startswith(reason)


def test_a_pointer_of_git_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\n")
    found = fault_of(ValueError("Expecting value: line 1 column 1 (char 0)"), str(tmp_path))
    assert found == f"{tmp_path / 'tokenizer.json'} is a pointer of Git LFS, not the file; fetch it with: git lfs pull"


class Loader:
    """A class of transformers that finds only some of the weights."""

    missing: ClassVar[set[str]] = {"b", "a", "c"}

    @classmethod
    def from_pretrained(
        cls, folder: str, *, output_loading_info: bool, **_: object
    ) -> tuple[Loader, dict[str, object]]:
        assert output_loading_info
        return cls(), {"missing_keys": cls.missing}


def test_weights_that_would_be_random_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = r"/m: its files lack 3 weights of a Loader \(a, b, \.\.\.\), which would be random"
    with pytest.raises(UserError, match=text):
        load_whole(Loader, "/m")
    monkeypatch.setattr(Loader, "missing", set())
    assert isinstance(load_whole(Loader, "/m"), Loader)


def test_the_folder_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, load_errors(str(tmp_path), "cannot load {}"):
        raise OSError(f"{tmp_path} is empty")
    assert str(caught.value) == f"cannot load {tmp_path} is empty"
    with pytest.raises(ZeroDivisionError), load_errors(str(tmp_path)):
        raise ZeroDivisionError
