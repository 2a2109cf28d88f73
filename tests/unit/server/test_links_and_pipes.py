"""Links that leave the directory of a task, and files that are no files: no route follows or waits for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.endpoint import served

if TYPE_CHECKING:
    from pathlib import Path

RESULT, LOG, FILE = "/api/v1/results/{}", "/api/v1/tasks/{}/logs", "/api/v1/results/{}/files/data.bin"
PLACES = [(RESULT, "responses.json"), (LOG, "logs/stage.log"), (FILE, "data.bin"), (FILE, "artifacts/data.bin")]


@pytest.mark.parametrize(("route", "name"), PLACES)
async def test_a_link_that_leaves_the_task_is_not_followed(tmp_path, route, name):
    secret = tmp_path / "secret.txt"
    secret.write_text("outside")
    async with served(tmp_path / "home") as endpoint:
        task = await endpoint.one()
        path: Path = endpoint.results / task / name
        path.parent.mkdir(parents=True)
        path.symlink_to(secret)
        answer = await endpoint.client.get(route.format(task))
        assert "outside" not in answer.text
        assert answer.status_code == (200 if route == LOG else 404)
        path.unlink()
        (path.parent / "other").write_text("inside")
        path.symlink_to("other")
        assert "inside" in (await endpoint.client.get(route.format(task))).text


@pytest.mark.parametrize(("route", "name"), [place for place in PLACES if "/" in place[1]])
async def test_a_folder_that_is_a_link_out_is_not_followed(tmp_path, route, name):
    (tmp_path / "other").mkdir()
    for file in ("responses.json", "stage.log", "data.bin"):
        (tmp_path / "other" / file).write_text("outside")
    async with served(tmp_path / "home") as endpoint:
        task = await endpoint.one()
        folder: Path = (endpoint.results / task / name).parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tmp_path / "other")
        assert "outside" not in (await endpoint.client.get(route.format(task))).text
        form = {"file": ("manifest.json", b"x")}  # a reserved name goes to artifacts/
        if name.startswith("artifacts"):
            assert (await endpoint.client.post(f"/api/v1/results/{task}/files", files=form)).status_code == 400
            assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["data.bin", "responses.json", "stage.log"]


@pytest.mark.parametrize(("route", "name"), PLACES)
async def test_a_pipe_is_not_waited_for(tmp_path, route, name):
    async with served(tmp_path / "home") as endpoint:
        task = await endpoint.one()
        path: Path = endpoint.results / task / name
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        answer = await endpoint.client.get(route.format(task))
        assert (answer.status_code, answer.text if route == LOG else "") == (200 if route == LOG else 404, "")


async def test_the_tail_of_a_log_that_leads_out_is_empty(tmp_path):
    (tmp_path / "secret.txt").write_text("outside\n")
    async with served(tmp_path / "home") as endpoint:
        task = await endpoint.one()
        (endpoint.results / task / "logs").mkdir(parents=True)
        (endpoint.results / task / "logs" / "stage.log").symlink_to(tmp_path / "secret.txt")
        assert (await endpoint.client.get(LOG.format(task), params={"tail": 5})).text == ""
        assert (await endpoint.client.get(LOG.format("unknown"))).status_code == 404
