"""`mloc up` without processes: what is kept running, what is said, what is kept secret."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.bridge.exposure import is_loopback, is_wildcard, unprotected
from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.settings import get_settings
from mloc_prefect.up.join import join_file
from mloc_prefect.up.keeper import Backoff, Keeper
from mloc_prefect.up.logs import LogView, tail
from mloc_prefect.up.secret_files import SecretFiles
from mloc_prefect.up.stack import Stack, child_environment, decide
from mloc_prefect.up.state import UpFiles, UpState, running
from mloc_prefect.up.summary import summary

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = Backoff(first=0.0, most=0.0)


class FakePart:
    """A part that ends when it is told to."""

    def __init__(self, name: str, journal: list[str], *, fails: int = 0) -> None:
        self.name = name
        self.log = None
        self.pid: int | None = None
        self.fails = fails
        self._journal = journal
        self._end: asyncio.Future[str] | None = None

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            self._journal.append(f"{self.name} fails")
            raise DispatchError(f"no {self.name}")
        self._journal.append(f"{self.name} starts")
        self.pid = 1
        self._end = asyncio.get_running_loop().create_future()

    async def ended(self) -> str:
        assert self._end is not None
        return await asyncio.shield(self._end)

    async def stop(self, grace: float) -> None:
        self._journal.append(f"{self.name} stops {grace:g}")

    def die(self, how: str = "SIGKILL") -> None:
        assert self._end is not None
        self._end.set_result(how)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_groups_start_in_order_and_stop_in_the_opposite_one():
    journal: list[str] = []
    a, b, c = (FakePart(name, journal) for name in "abc")
    keeper = Keeper([[a], [b, c]], say=journal.append)
    await keeper.start()
    await keeper.stop(grace=2)
    assert journal == ["a starts", "b starts", "c starts", "b stops 2", "c stops 2", "a stops 2"]


async def test_a_part_that_does_not_start_at_first_is_an_error():
    journal: list[str] = []
    keeper = Keeper([[FakePart("a", journal)], [FakePart("b", journal, fails=1)]], say=journal.append)
    with pytest.raises(DispatchError, match="no b"):
        await keeper.start()
    await keeper.stop(grace=0)
    assert journal[-2:] == ["b stops 0", "a stops 0"]


async def test_a_part_that_ends_is_started_until_it_runs_again():
    journal: list[str] = []
    part = FakePart("a", journal)
    keeper = Keeper([[part]], say=journal.append, backoff=AT_ONCE)
    await keeper.start()
    part.fails = 2
    part.die("exit status 1")
    await settle()
    assert journal[1] == "a ended (exit status 1); starting it again in 0 s"
    assert [line for line in journal if not line.startswith("a does not")][1:] == [
        journal[1],
        "a fails",
        "a fails",
        "a starts",
        "a is back",
    ]
    await keeper.stop()


async def test_nothing_is_started_again_after_the_stop():
    journal: list[str] = []
    part = FakePart("a", journal)
    keeper = Keeper([[part]], say=journal.append, backoff=AT_ONCE)
    await keeper.start()
    await keeper.stop(grace=0)
    part.die()
    await settle()
    assert journal == ["a starts", "a stops 0"]


def test_the_waits_double_up_to_a_bound():
    assert [Backoff().after(n) for n in (0, 1, 2, 10, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]


async def test_short_lives_count_and_a_long_one_forgets_them():
    journal: list[str] = []
    now = 0.0
    part = FakePart("a", journal)
    backoff = Backoff(first=1e-6, most=1.0, steady=60.0)
    keeper = Keeper([[part]], say=journal.append, backoff=backoff, clock=lambda: now)
    await keeper.start()
    for _ in range(3):
        part.die()
        await asyncio.sleep(0.001)
        await settle()
    now = 100.0
    part.die()
    await asyncio.sleep(0.001)
    await settle()
    await keeper.stop()
    waits = [line.split(" in ")[1] for line in journal if "starting it again" in line]
    assert waits == ["1e-06 s", "2e-06 s", "4e-06 s", "1e-06 s"]


def test_the_view_shows_new_lines_of_each_part_with_its_name(tmp_path):
    log, copy = tmp_path / "a.log", tmp_path / "all.log"
    log.write_text("old\n")
    out = io.StringIO()
    view = LogView(out, copy=copy)
    view.follow("endpoint", log)
    view.say("hello")
    with log.open("a") as file:
        file.write("one\ntw")
    view.poll()
    with log.open("a") as file:
        file.write("o\n77:M 24 Nov 2026 00:01:26.045 * Ready to accept connections tcp\n")
        file.write("77:M 24 Nov 2026 00:01:26.045 # Out of memory\n")
    view.poll()
    log.write_text("cut\n")
    view.poll()
    expected = ["mloc      │ hello", "endpoint  │ one", "endpoint  │ two"]
    shown = [*expected, "endpoint  │ 77:M 24 Nov 2026 00:01:26.045 # Out of memory"]
    assert out.getvalue().splitlines() == shown
    view.close()
    assert [line.replace("|", "│") for line in copy.read_text().splitlines()] == shown


def test_tracebacks_of_a_part_can_be_folded_to_their_errors(tmp_path):
    log = tmp_path / "a.log"
    out = io.StringIO()
    view = LogView(out)
    view.follow("prefect", log, folds=True)
    view.follow("bridge", log)
    log.write_text(
        "12:00:00 | WARNING | Redis is unavailable\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in a\n'
        "    a()\n"
        "OSError: first\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "b.py", line 1, in b\n'
        "OSError: second\n"
        "12:00:01 | WARNING | retrying\n  in a moment\n"
    )
    view.poll()
    lines = [line.split("│ ") for line in out.getvalue().splitlines()]
    shown = [text for name, text in lines if name.startswith("prefect")]
    assert shown == [
        "12:00:00 | WARNING | Redis is unavailable",
        "OSError: first",
        "OSError: second",
        "12:00:01 | WARNING | retrying",
        "  in a moment",
    ]
    assert sum(name.startswith("bridge") for name, _ in lines) == 13, "all of it"


def test_a_closed_terminal_does_not_matter(tmp_path):
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    view = LogView(Closed(), copy=tmp_path / "copy")
    view.say("one")
    view.say("two")
    view.close()
    assert (tmp_path / "copy").read_text().count("\n") == 2


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "x"
    assert tail(log) == []
    log.write_text("a\nb\n\n")
    assert tail(log, 5) == ["a", "b"]


def test_secrets_are_made_once_in_files_that_only_the_owner_reads(tmp_path):
    files = SecretFiles.below(tmp_path)
    first = files.read_or_make(files.token)
    assert len(first) == 32
    assert files.read_or_make(files.token) == first
    files.token.chmod(0o644)
    assert files.read_or_make(files.token) == first
    assert stat.S_IMODE(files.token.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert files.read_or_make(files.prefect_auth, "mloc:").startswith("mloc:")
    files.token.write_text("\n")
    with pytest.raises(DispatchError, match="is empty"):
        files.read_or_make(files.token)


def test_one_for_each_home_and_its_state_is_gone_with_it(tmp_path):
    assert running(tmp_path / "absent") is None
    first, second = UpFiles(tmp_path), UpFiles(tmp_path)
    assert first.claim()
    assert not second.claim()
    assert second.holder() == os.getpid()
    assert running(tmp_path) is None
    state = UpState(pid=os.getpid(), url="http://x", api_url="a", ui_url="u", redis="r", parts={"bridge": 7})
    first.write(state)
    assert running(tmp_path) == state
    first.release()
    assert running(tmp_path) is None
    assert second.claim()
    second.release()


def test_ports_are_kept_and_nonsense_in_their_file_does_not_matter(tmp_path):
    files = UpFiles(tmp_path)
    assert files.ports() == {}
    files.keep_ports({"prefect": 4200, "redis": 6379})
    assert files.ports() == {"prefect": 4200, "redis": 6379}
    (tmp_path / "ports.json").write_text("{")
    assert files.ports() == {}


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.9.9.9", True, False),
        ("::1", True, False),
        ("[::1]", True, False),
        ("localhost", True, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("192.168.1.5", False, False),
        ("gpu-1", False, False),
    ],
)
def test_which_addresses_others_reach(host, loopback, wildcard):
    assert (is_loopback(host), is_wildcard(host)) == (loopback, wildcard)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://:pw@r:6379/0", None),
        ("redis://r:6379/0", "r"),
        ("redis://localhost/0", None),
        ("redis://r/0?password=pw", None),
        ("http://prefect:4200/api", "prefect"),
        ("http://127.0.0.1:4200/api", None),
        ("unix:///run/redis.sock", None),
    ],
)
def test_which_services_have_no_password(url, host):
    assert unprotected(url) == host


def stack(home: Path, **more: object) -> Stack:
    facts: dict[str, object] = {
        "home": home,
        "run_dir": home / "run",
        "logs": home / "logs",
        "host": "127.0.0.1",
        "endpoint_host": "127.0.0.1",
        "named_host": False,
        "port": 8000,
        "prefect_port": 4200,
        "redis_port": 6379,
        "api_url": "http://127.0.0.1:4200/api",
        "token": None,
        "token_file": None,
        "token_variable": None,
        "auth": None,
        "results": home / "results",
        "fsync": "everysec",
        "external_redis": None,
    }
    return Stack(**(facts | more))  # type: ignore[arg-type]


def test_the_environment_of_the_parts(tmp_path):
    user = {"PATH": "/bin", "LOG_FILE": "x.log", "NOTIFY_SOCKET": "/run/n", "ORCHESTRATOR_TOKEN": "old"}
    env = child_environment(stack(tmp_path, token="t", auth="mloc:p"), "redis://r/0", "redis://r/1", user)
    assert env["MLOC_TOKEN"] == "t"
    assert env["PREFECT_API_AUTH_STRING"] == "mloc:p"
    assert env["MLOC_EVENTS_REDIS_URL"] == "redis://r/1"
    assert env["MLOC_BASE_URL"] == "http://127.0.0.1:8000"
    assert env["PATH"] == "/bin"
    assert not {"LOG_FILE", "NOTIFY_SOCKET", "MLOC_HOST"} & set(env)
    named = child_environment(stack(tmp_path, endpoint_host="10.0.0.5", named_host=True), "redis://r/0", None, user)
    assert named["MLOC_HOST"] == "10.0.0.5"
    plain = child_environment(stack(tmp_path), "redis://r/0", None, {"ORCHESTRATOR_BASE_URL": "http://lab"})
    assert not {"MLOC_TOKEN", "PREFECT_API_AUTH_STRING", "MLOC_EVENTS_REDIS_URL", "MLOC_BASE_URL"} & set(plain)


def test_the_summary_shows_addresses_and_no_secret(tmp_path):
    plain = "\n".join(summary(stack(tmp_path), worker=True, show_token=False))
    assert "curl -X POST http://127.0.0.1:8000/api/v1/tasks --data-binary @-" in plain
    assert "PREFECT_API_URL=http://127.0.0.1:4200/api" in plain
    files = SecretFiles.below(tmp_path)
    opened = stack(
        tmp_path, host="0.0.0.0", endpoint_host="0.0.0.0", token="t0ken", token_file=files.token, auth="mloc:pass"
    )
    text = "\n".join(summary(opened, worker=False, show_token=False))
    assert "t0ken" not in text
    assert "mloc:pass" not in text
    assert f'-H "Authorization: Bearer $(cat {files.token})"' in text
    assert str(files.join) in text
    assert "t0ken" in "\n".join(summary(opened, worker=False, show_token=True))


def test_what_another_machine_needs_to_join(tmp_path):
    opened = stack(tmp_path, host="10.0.0.5", endpoint_host="10.0.0.5", token="t", auth="mloc:p")
    lines = join_file(opened, "redis://:pw@127.0.0.1:6379/0").splitlines()
    assert dict(line.removeprefix("export ").split("=", 1) for line in lines) == {
        "REDIS_URL": "redis://:pw@10.0.0.5:6379/0",
        "PREFECT_API_URL": "http://10.0.0.5:4200/api",
        "PREFECT_API_AUTH_STRING": "mloc:p",
        "MLOC_URL": "http://10.0.0.5:8000",
        "MLOC_BASE_URL": "http://10.0.0.5:8000",
        "MLOC_TOKEN": "t",
    }


def test_a_shell_reads_any_token_from_the_file_to_join(tmp_path):
    token = "it's; $HOME `id`"
    text = join_file(stack(tmp_path, host="10.0.0.5", token=token), "redis://:pw@127.0.0.1:6379/0")
    shown = subprocess.run(["sh", "-c", f'{text}\nprintf %s "$MLOC_TOKEN"'], capture_output=True, text=True, check=True)
    assert shown.stdout == token


@pytest.mark.parametrize("redis", ["redis://localhost:6379/0", "unix:///run/redis.sock"])
def test_the_file_to_join_and_the_summary_warn_of_services_that_only_this_machine_reaches(tmp_path, redis):
    mine = stack(
        tmp_path,
        host="10.0.0.5",
        token="t",
        external_redis=redis,
        redis_port=None,
        api_url="http://127.0.0.1:4200/api",
        prefect_port=None,
    )
    shown = [line for line in summary(mine, worker=True, show_token=False) if "warning" in line]
    notes = [line for line in join_file(mine, redis).splitlines() if line.startswith("# ")]
    assert (
        [line.split()[1] for line in shown] == [line.split()[1] for line in notes] == ["REDIS_URL", "PREFECT_API_URL"]
    )
    assert "which only this machine reaches" in shown[0]
    others = stack(tmp_path, host="10.0.0.5", external_redis="redis://:pw@r.lab/0", redis_port=None)
    assert "warning" not in "\n".join(summary(others, worker=True, show_token=False))
    assert "#" not in join_file(others, "redis://:pw@r.lab/0")


def test_databases_of_a_redis_of_the_user(tmp_path):
    from mloc_prefect.up.redis import databases

    found = databases(stack(tmp_path, external_redis="valkey://:pw@r:6379/3", redis_port=None))
    assert (found.mloc, found.messaging, found.docket) == tuple(f"redis://:pw@r:6379/{n}" for n in (3, 4, 5))
    assert found.embedded is None
    for wrong in ("unix:///run/redis.sock", "redis://r/main"):
        with pytest.raises(MlocError):
            databases(stack(tmp_path, external_redis=wrong, redis_port=None))
    assert "pw" not in stack(tmp_path, external_redis="redis://:pw@r:6379/3").redis_text


@pytest.fixture
def ports(monkeypatch):
    """Every port is free."""
    monkeypatch.setattr("mloc_prefect.up.stack.required_port", lambda port, _host: port)
    monkeypatch.setattr("mloc_prefect.up.stack.free_port", lambda wanted, *_hosts: wanted)


@pytest.mark.usefixtures("ports")
def test_by_default_all_listens_on_the_loopback_without_secrets(tmp_path):
    found = decide(get_settings(home=tmp_path), {"redis": 7001}, {})
    assert (found.host, found.endpoint_host, found.token, found.auth) == ("127.0.0.1", "127.0.0.1", None, None)
    assert (found.port, found.prefect_port, found.redis_port) == (8000, 4200, 7001)
    assert found.api_url == "http://127.0.0.1:4200/api"
    assert not (tmp_path / "secrets").exists()


@pytest.mark.usefixtures("ports")
def test_a_token_alone_opens_the_endpoint_as_mloc_does(tmp_path):
    found = decide(get_settings(home=tmp_path, token="t"), {}, {})
    assert (found.host, found.endpoint_host, found.token) == ("127.0.0.1", "0.0.0.0", "t")
    assert found.url == "http://127.0.0.1:8000"
    assert (found.token_file, found.token_variable) == (None, None)
    assert found.auth is not None
    assert found.auth.startswith("mloc:")


@pytest.mark.usefixtures("ports")
@pytest.mark.parametrize("variable", ["MLOC_TOKEN", "ORCHESTRATOR_TOKEN"])
def test_the_command_to_copy_names_the_variable_that_has_the_token(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "t")
    found = decide(get_settings(home=tmp_path), {}, {variable: "t"})
    text = "\n".join(summary(found, worker=True, show_token=False))
    assert f'-H "Authorization: Bearer ${variable}"' in text


@pytest.mark.usefixtures("ports")
def test_an_address_makes_what_is_missing_of_the_secrets(tmp_path):
    found = decide(get_settings(home=tmp_path, host="10.0.0.5"), {}, {})
    assert (found.host, found.endpoint_host) == ("10.0.0.5", "10.0.0.5")
    assert found.token_file == tmp_path / "secrets" / "token"
    assert found.api_url == "http://10.0.0.5:4200/api"
    again = decide(get_settings(home=tmp_path, host="10.0.0.5"), {}, {})
    assert (again.token, again.auth) == (found.token, found.auth)


@pytest.mark.usefixtures("ports")
def test_services_of_the_user_are_used_and_must_not_be_open_beside_an_open_endpoint(tmp_path):
    redis, prefect = "redis://r.lab:6379/0", "http://p.lab:4200/api"
    found = decide(get_settings(home=tmp_path, redis_url=redis), {}, {"PREFECT_API_URL": prefect})
    assert (found.redis_port, found.prefect_port, found.api_url, found.ports) == (None, None, prefect, {})
    with pytest.raises(DispatchError, match="needs a Redis with a password"):
        decide(get_settings(home=tmp_path, redis_url=redis, host="0.0.0.0"), {}, {})
    with pytest.raises(DispatchError, match="needs a Prefect API with a password"):
        decide(get_settings(home=tmp_path, host="0.0.0.0"), {}, {"PREFECT_API_URL": prefect})
    login = {"PREFECT_API_URL": prefect, "PREFECT_API_AUTH_STRING": "a:b"}
    safe = get_settings(home=tmp_path, redis_url=redis.replace("//", "//:pw@"), host="0.0.0.0")
    assert decide(safe, {}, login).token is not None
