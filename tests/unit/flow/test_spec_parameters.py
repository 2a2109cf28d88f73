"""Specs as parameters of flow runs: small ones by value, large ones and secrets by reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ArtifactError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.spec_parameters import BY_VALUE, pack, pack_overrides, pack_values, unpack

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "top-secret-value"


@pytest.mark.parametrize(
    "text",
    [f"api_key: {SECRET}", f"url: http://u:{SECRET}@h/", f"headers: {{X-A: {SECRET}}}", "a: " + "x" * BY_VALUE],
)
def test_secrets_and_large_specs_travel_by_reference(tmp_path: Path, text: str) -> None:
    packed = pack(text, tmp_path)
    assert packed.startswith("sha256:")
    assert SECRET not in packed
    assert unpack(packed, tmp_path) == text


def test_other_specs_travel_by_value(tmp_path: Path) -> None:
    assert pack("max_tokens: 8", tmp_path) == "max_tokens: 8"
    assert list(tmp_path.iterdir()) == []


def test_values_of_secret_names_travel_by_reference(tmp_path: Path) -> None:
    values = {"topic": "x", "hf_token": SECRET, "url": f"http://u:{SECRET}@h/", "odd": "mloc-secret:x"}
    packed = pack_values(values, tmp_path)
    assert packed["topic"] == "x"
    assert SECRET not in str(packed)
    assert spec_parameters.unpack_values(packed, tmp_path) == values


def test_overrides_that_set_a_secret_travel_by_reference(tmp_path: Path) -> None:
    overrides = ["spec.priority=3", f"spec.api_key={SECRET}"]
    packed = pack_overrides(overrides, tmp_path)
    assert packed[0] == "spec.priority=3"
    assert SECRET not in str(packed)
    assert spec_parameters.unpack_overrides(packed, tmp_path) == tuple(overrides)


def test_a_copy_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not at"):
        unpack("sha256:" + "0" * 64, tmp_path)
