"""A worker takes work only when it sees the results root of its site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from mloc_prefect.cluster.results_proof import (
    BRIDGE,
    TOKEN_FILE,
    ResultsProof,
    RootToken,
    make_token,
    publish,
    published,
    read_token,
)


class Server:
    """Prefect's variables in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    async def request(self, method: str, path: str, json: Any = None) -> httpx.Response:
        name = path.rpartition("/")[2] or json["name"]
        request = httpx.Request(method, f"http://prefect{path}")
        if method != "POST" and name not in self.values:
            from prefect.exceptions import PrefectHTTPStatusError

            answer = httpx.Response(404, request=request)
            raise PrefectHTTPStatusError("no such variable", request=request, response=answer)
        if json is not None:
            self.values[name] = json["value"]
        return httpx.Response(200, json={"name": name, "value": self.values[name]}, request=request)


@pytest.fixture
def server() -> Any:
    return Server()


def worker(server: Any, root: Path, name: str = "w", *, others: bool = True, wanted: bool = True) -> ResultsProof:
    return ResultsProof(server, root, name, lambda: others, wanted=wanted)


def test_a_root_has_one_token(tmp_path: Path) -> None:
    assert read_token(tmp_path / "results") is None
    token = make_token(tmp_path / "results")
    assert make_token(tmp_path / "results") == token == read_token(tmp_path / "results")
    assert make_token(tmp_path / "other") != token


async def test_a_worker_that_sees_the_root_of_the_bridge_takes_work(server: Any, tmp_path: Path) -> None:
    await publish(server, tmp_path, BRIDGE)
    proof = worker(server, tmp_path)
    await proof.check()
    assert proof.problem == ""


async def test_one_with_another_root_takes_none_and_says_why(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(server, tmp_path / "common", BRIDGE)
    (tmp_path / "mounted").mkdir()
    unmounted, elsewhere = worker(server, tmp_path / "mounted"), worker(server, tmp_path / "elsewhere", others=False)
    make_token(tmp_path / "elsewhere")
    for _ in range(2):
        await unmounted.check()
        await elsewhere.check()
    assert unmounted.problem == (
        f"does not see the results root: {tmp_path}/mounted here has no {TOKEN_FILE}, bridge uses {tmp_path}/common; "
        "mount it, or correct RESULTS_DIR"
    )
    assert "is another directory" in elsewhere.problem
    assert caplog.text.count("it takes no work until then") == 2
    assert not (tmp_path / "mounted" / TOKEN_FILE).exists()
    (tmp_path / "mounted").rmdir()
    (tmp_path / "mounted").symlink_to(tmp_path / "common")  # it is mounted at last
    await unmounted.check()
    assert unmounted.problem == ""


async def test_without_a_bridge_the_first_worker_says_which_root_is_right(server: Any, tmp_path: Path) -> None:
    first, second = worker(server, tmp_path / "a", "first", others=False), worker(server, tmp_path / "b", "second")
    await first.check()
    await second.check()
    assert (first.problem, "first uses" in second.problem) == ("", True)
    alone = worker(server, tmp_path / "b", "second", others=False)  # the first one has left
    await alone.check()
    assert alone.problem == ""
    found = await published(server)
    assert found is not None
    assert (found.by, found.token) == ("second", read_token(tmp_path / "b"))


async def test_a_bridge_is_right_whatever_a_worker_said(server: Any, tmp_path: Path) -> None:
    proof = worker(server, tmp_path / "own", others=False)
    await proof.check()
    await publish(server, tmp_path / "common", BRIDGE)
    await proof.check()
    assert "does not see the results root" in proof.problem


async def test_the_operator_may_do_without(server: Any, tmp_path: Path) -> None:
    await publish(server, tmp_path / "common", BRIDGE)
    proof = worker(server, tmp_path / "own", wanted=False)
    await proof.check()
    assert proof.problem == ""


async def test_a_root_that_cannot_be_written_is_a_problem_too(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root may write everywhere
    proof = worker(server, tmp_path / "file" / "results", others=False)
    await proof.check()
    assert proof.problem.startswith("cannot write its results root")


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"token": 1}', "null"])
def test_other_values_of_the_variable_are_no_token(text: str) -> None:
    assert RootToken.from_json(text) is None
