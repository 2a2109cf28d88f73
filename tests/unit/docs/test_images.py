"""The images of deploy/Dockerfile: they are not built here, but each path, command and extra in it is checked."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.cli.app import app
from mloc_prefect.cluster.identity import worker_id
from mloc_prefect.execution.environments.catalog import ENVIRONMENTS
from mloc_prefect.services.profile.part_images import OUR_USER, TARGETS
from mloc_prefect.settings import MlocSettings, get_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "Dockerfile"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage: word and rest, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        name = rest.rpartition(" AS ")[2] if word == "FROM" else name
        found.setdefault(name, []).append((word, re.sub(r"\s+", " ", rest)))
    return found


STAGES = stages()


def of(image: str, word: str) -> list[str]:
    return [rest for found, rest in STAGES[image] if found == word]


def test_there_is_an_image_for_the_core_and_for_each_kind_of_worker() -> None:
    assert set(STAGES) == {"", "wheel", *TARGETS}
    assert list(STAGES)[-1] == "mloc-core", "what is built without a target"


@pytest.mark.parametrize("stage", ["wheel", *TARGETS])
def test_what_is_copied_is_there(stage: str) -> None:
    for rest in of(stage, "COPY"):
        *sources, _ = rest.split()
        if sources[0].startswith("--from="):
            assert sources[0] == "--from=wheel"
            assert any(f"--wheel-dir {sources[1]}" in run for run in of("wheel", "RUN"))
            continue
        for source in sources:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("image", TARGETS)
def test_an_image_runs_a_command_of_ours_without_privileges_and_says_whether_it_is_healthy(image: str) -> None:
    (user,) = of(image, "USER")
    assert user == str(OUR_USER)
    assert any(f"useradd --uid {user}" in run for run in of(image, "RUN"))
    assert [word for word, _ in STAGES[image]].index("USER") < [word for word, _ in STAGES[image]].index("ENTRYPOINT")
    (check,) = of(image, "HEALTHCHECK")
    program = json.loads(check.partition("CMD ")[2])[-1]
    assert any(rest == f"deploy/healthcheck.py {program}" for rest in of(image, "COPY"))
    assert of(image, "ENTRYPOINT") == ['["mloc"]']
    words = json.loads(of(image, "CMD")[0])
    known = {group.name for group in app.registered_groups} | {command.name for command in app.registered_commands}
    known |= {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert words[0] in known
    exposed = of(image, "EXPOSE")
    assert exposed == ([words[words.index("--port") + 1]] if "--port" in words else [])


@pytest.mark.parametrize("image", TARGETS)
def test_extras_constraints_and_variables_exist(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runs = " ".join(of(image, "RUN"))
    (extras,) = re.findall(r"/wheels/\*\.whl\)\[([^\]]+)\]", runs)
    named = next(rest.partition("=")[2] for rest in of(image, "ARG")) if extras == "${EXTRAS}" else extras
    assert set(named.split(",")) <= set(project["optional-dependencies"])
    for pins in re.findall(r"--constraint /opt/mloc/(\S+)", runs):
        assert (ROOT / pins).is_file()
        assert any(rest == "constraints /opt/mloc/constraints" for rest in of(image, "COPY"))
    aliases = {str(a) for field in MlocSettings.model_fields.values() for a in field.validation_alias.choices}
    variables = {name for rest in of(image, "ENV") for name in re.findall(r"(?:^| )([A-Z_]+)=", rest)}
    assert variables - {"PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"} <= aliases


def test_the_environment_of_vllm_is_where_the_worker_looks_for_it() -> None:
    (made,) = re.findall(r"MLOC_HOME=(\S+) .*mloc env create (\S+)", " ".join(of("mloc-vllm", "RUN")))
    (value,) = (rest.partition("=")[2].strip("'") for rest in of("mloc-vllm", "ENV") if rest.startswith("MLOC_PYTHON"))
    assert json.loads(value) == {made[1]: f"{made[0]}/envs/{made[1]}/bin/python"}
    assert ENVIRONMENTS[made[1]].needs_gpu
    pins = (ROOT / "constraints" / ENVIRONMENTS[made[1]].constraints).read_text(encoding="utf-8")
    toolkit = re.search(r"^cuda-toolkit==(\d+)", pins, re.MULTILINE)
    (base,) = (rest for rest in (r for w, r in STAGES[""] if w == "ARG") if rest.startswith("CUDA_IMAGE="))
    assert toolkit
    assert re.fullmatch(rf"CUDA_IMAGE=nvidia/cuda:{toolkit[1]}\.\d+\.\d+-runtime-ubuntu\d+\.\d+", base)


def test_hadolint_finds_no_fault() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


_SPEC = importlib.util.spec_from_file_location("healthcheck", ROOT / "deploy" / "healthcheck.py")
assert _SPEC is not None
assert _SPEC.loader is not None
healthcheck = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(healthcheck)


class Services(BaseHTTPRequestHandler):
    """Answers as the endpoint and Prefect do."""

    workers: tuple[dict[str, str], ...] = ()

    def do_GET(self) -> None:
        self._reply(200 if self.path in {"/readyz", "/api/health"} else 404, "true")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path == "/api/work_pools/gpu/workers/filter"
        self._reply(200 if known else 404, json.dumps(self.workers))

    def _reply(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Services)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setenv("MLOC_WORKER_ID", "w1")
    monkeypatch.delenv("MLOC_WORK_POOL", raising=False)
    yield str(server.server_port)
    server.shutdown()
    server.server_close()


def test_an_endpoint_and_a_prefect_server_have_to_answer(port: str) -> None:
    assert healthcheck.main(["python", "/bin/mloc", "serve", "--port", port]) is None
    assert healthcheck.main(["prefect", "server", "start", "--port", port]) is None
    assert "refused" in healthcheck.main(["mloc", "serve", "--port", "1"])
    assert healthcheck.main(["python", "/bin/mloc", "bridge"]) is None
    assert healthcheck.main(["prefect", "server", "services", "start"]) is None


def test_a_worker_has_to_be_online(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del port
    command = ["python", "/bin/mloc", "worker", "start"]
    assert healthcheck.main(command) == "work pool gpu has no worker w1 that is online"
    monkeypatch.setattr(Services, "workers", ({"name": "w1", "status": "OFFLINE"},))
    assert healthcheck.main(command) == "work pool gpu has no worker w1 that is online"
    monkeypatch.setattr(Services, "workers", ({"name": "w1", "status": "ONLINE"},))
    assert healthcheck.main(command) is None
    assert "404" in healthcheck.main([*command, "--pool", "other"])


@pytest.mark.parametrize(
    ("chosen", "host", "online", "healthy"),
    [
        ("gpu-1", "h", "gpu-1", True),
        (" gpu-1 ", "h", "gpu-1", True),
        ("gpu-1", "h", "gpu-10", False),
        ("gpu-1", "h", "gpu-1-0a1b2c", False),
        ("", "gpu-1.lab", "gpu-1-0a1b2c", True),
        ("", "gpu-1", "gpu-10-0a1b2c", False),
        ("", "gpu", "gpu-1-0a1b2c", False),
        ("", "gpu-1", "gpu-1", False),
    ],
)
def test_a_worker_is_not_taken_for_another(
    port: str, chosen: str, host: str, online: str, healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    del port
    monkeypatch.setenv("MLOC_WORKER_ID", chosen)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(Services, "workers", ({"name": online, "status": "ONLINE"},))
    assert (healthcheck.main(["mloc", "worker", "start"]) is None) is healthy


@pytest.mark.parametrize("variable", ["MLOC_WORKER_ID", "WORKER_ID", "MLOC_UNKNOWN"])
def test_workers_have_the_names_that_are_looked_for(port: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del port
    monkeypatch.delenv("MLOC_WORKER_ID")
    monkeypatch.setenv(variable, "gpu-1")
    monkeypatch.setattr(Services, "workers", ({"name": worker_id(get_settings()), "status": "ONLINE"},))
    assert healthcheck.main(["mloc", "worker", "start"]) is None
