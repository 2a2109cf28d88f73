"""What `mloc up` decides: ports, secrets, environments, and what it prints of them."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.services.secret_files import SecretFiles
from mloc_prefect.services.up.join_env import join_file
from mloc_prefect.services.up.stack_config import StackConfig, child_environment, decide, require_writable
from mloc_prefect.services.up.summary import summary
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path


def stack(home: Path, **more: object) -> StackConfig:
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
    return StackConfig(**(facts | more))  # type: ignore[arg-type]


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
    from mloc_prefect.services.up.databases import databases

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
    monkeypatch.setattr("mloc_prefect.services.up.stack_config.required_port", lambda port, _host: port)
    monkeypatch.setattr("mloc_prefect.services.up.stack_config.free_port", lambda wanted, *_hosts: wanted)


@pytest.mark.usefixtures("ports")
def test_by_default_all_listens_on_the_loopback_and_prefect_wants_a_login(tmp_path):
    found = decide(get_settings(home=tmp_path), {"redis": 7001}, {})
    assert (found.host, found.endpoint_host, found.token, found.names) == ("127.0.0.1", "127.0.0.1", None, ())
    assert found.auth is not None
    assert found.auth.startswith("mloc:")
    assert [(f.name, stat.S_IMODE(f.stat().st_mode)) for f in (tmp_path / "secrets").iterdir()] == [
        ("prefect-auth", 0o600)
    ]
    assert (found.port, found.prefect_port, found.redis_port) == (8000, 4200, 7001)
    assert found.api_url == "http://127.0.0.1:4200/api"
    assert decide(get_settings(home=tmp_path, base_url="http://lab.example:8000"), {}, {}).names == ("lab.example",)


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


def test_results_that_cannot_be_written_are_refused_before_anything_starts(tmp_path):
    require_writable(tmp_path / "new" / "results")
    assert list((tmp_path / "new" / "results").iterdir()) == []
    (tmp_path / "file").write_text("")  # root may write everywhere
    with pytest.raises(DispatchError, match=r"the results directory .*/file/results cannot be written: ") as caught:
        require_writable(tmp_path / "file" / "results")
    assert "RESULTS_DIR" in caught.value.hint
