"""The generic flow reads a spec by the limits of the settings, as the endpoint that accepted it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ArtifactError, SpecError
from mloc_prefect.flow import run_workflow as module
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.run_workflow import _plan, given_spec
from mloc_prefect.flow.spec_parameters import pack, pack_values
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores
from tests.support.records import submit

if TYPE_CHECKING:
    from pathlib import Path

SPEC = """apiVersion: mloc/v1
kind: EchoTask
metadata: {name: n}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: "1", memory: 64Mi}}
  stages:
"""


def stages(count: int) -> str:
    return SPEC + "".join(f"    - {{name: s{i}}}\n" for i in range(count))


def test_a_setting_admits_more_stages_than_the_default(tmp_path: Path) -> None:
    options = RunOptions(settings=get_settings(home=tmp_path, max_tasks=2001))
    assert len(_plan(stages(2001), "<submitted>", options).stages) == 2001


def test_a_setting_admits_fewer_stages_than_the_default(tmp_path: Path) -> None:
    options = RunOptions(settings=get_settings(home=tmp_path, max_tasks=2))
    with pytest.raises(SpecError, match="3 tasks are more than the 2 that one submission may have"):
        _plan(stages(3), "<submitted>", options)


def test_a_setting_admits_larger_texts_than_the_default(tmp_path: Path) -> None:
    text = stages(1) + "# x\n" * 300_000
    options = RunOptions(settings=get_settings(home=tmp_path, max_spec_bytes=2 << 20))
    assert len(_plan(text, "<submitted>", options).stages) == 1


async def test_a_worker_without_the_results_root_reads_its_spec_from_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, values = f"{SPEC}  api_key: hidden-value\n", {"hf_token": "hidden-value", "topic": "x"}
    stores = memory_stores()
    await submit(stores.tasks, "s1", "a", raw_yaml=text, parameters=values)
    monkeypatch.setattr(module, "open_stores", lambda _: stores)
    there, here = tmp_path / "there", get_settings(home=tmp_path / "here", redis_url="redis://h/0")
    spec, given = pack(text, there), pack_values(values, there)
    assert await given_spec(spec, given, "s1", here) == (text, values)
    for other, redis in (("s2", here), ("s1", get_settings(home=tmp_path / "here"))):
        with pytest.raises(ArtifactError, match="is not at"):
            await given_spec(spec, given, other, redis)
    with pytest.raises(ArtifactError, match="is not at"):
        await given_spec(pack(f"{text}# other", there), given, "s1", here)


async def test_a_worker_with_the_results_root_needs_no_redis(tmp_path: Path) -> None:
    settings = get_settings(home=tmp_path)
    spec = pack("token: hidden-value", settings.results_root)
    given = pack_values({"token": "hidden-value"}, settings.results_root)
    assert await given_spec(spec, given, None, settings) == ("token: hidden-value", {"token": "hidden-value"})
