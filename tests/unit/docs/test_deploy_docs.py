"""What the pages for operators promise: variables, commands, the Compose file, units, samples."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import prefect.settings
import pytest
import typer
import yaml

from mloc_prefect.cli.app import app
from mloc_prefect.services.profile.topology import PROFILE
from mloc_prefect.settings import MlocSettings

ROOT = Path(__file__).parents[3]
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))

# What either generation of MLOC reads. [protocol 6]
VARIABLES = re.findall(
    r"\w+",
    """
REDIS_URL ORCHESTRATOR_TOKEN ORCHESTRATOR_RESULTS_DIR RESULTS_DIR PORT LOG_LEVEL LOG_FILE LOG_MAX_BYTES LOG_BACKUP_COUNT
HEARTBEAT_TTL_SEC RETRY_BASE_DELAY_SEC RETRY_MAX_DELAY_SEC QUEUE_LOG_INTERVAL_SEC CPU_ONLY_WEIGHT GPU_WEIGHT
HIGH_AVAIL_RATIO LOW_AVAIL_RATIO MAX_AUTO_SHARDS TASK_TOPIC HEARTBEAT_INTERVAL_SEC WORKER_ID WORKER_TAGS
ORCHESTRATOR_BASE_URL VLLM_MODEL HF_MODEL CUDA_VISIBLE_DEVICES UTU_LLM_TYPE UTU_LLM_MODEL UTU_LLM_BASE_URL
UTU_LLM_API_KEY SERPER_API_KEY JINA_API_KEY DB_URL HOST_METRICS_DIR ORCHESTRATOR_METRICS_DIR HOST_APP_HOST HOST_APP_PORT
HOST_APP_RELOAD HOST_APP_LOG_LEVEL ORCHESTRATOR_DISPATCH_MODE ORCHESTRATOR_WORKER_SELECTION ENABLE_CONTEXT_REUSE
ENABLE_TASK_MERGE TASK_MERGE_MAX_BATCH_SIZE ENABLE_ELASTIC_SCALING ENABLE_STAGE_WEIGHT_STICKINESS WORKER_CACHE_TTL_SEC
SCHEDULER_LAMBDA_INFERENCE SCHEDULER_LAMBDA_TRAINING SCHEDULER_LAMBDA_OTHER SCHEDULER_SELECTION_JITTER
ELASTIC_AUTO_DISABLE_IDLE_SEC WORKER_COST_PER_HOUR WORKER_NETWORK_BANDWIDTH_BYTES_PER_SEC
""",
)


def rows(page: str) -> list[list[str]]:
    """Return the cells of all table rows."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def aliases(setting: str) -> set[str]:
    return {str(name) for name in MlocSettings.model_fields[setting].validation_alias.choices}


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_of_mloc_has_a_row(variable):
    assert any(f"`{variable}`" in row[0] for row in rows(MIGRATION))


def test_the_settings_of_that_table_read_these_variables_and_no_others_of_mloc():
    table = {}
    for row in rows(MIGRATION):
        if len(row) == 3 and row[1].startswith("`"):
            table[row[1].strip("`")] = set(re.findall(r"`([A-Z_]+)`", row[0]))
    assert all(names <= aliases(setting) for setting, names in table.items())
    for setting in MlocSettings.model_fields:
        ours = {n for n in aliases(setting) if not n.startswith(("MLOC_", "PREFECT_"))}
        assert ours <= table.get(setting, set()), f"{setting}: {ours} are not in the table"


def commands(group: typer.Typer) -> set[str]:
    return {command.name or command.callback.__name__ for command in group.registered_commands}


def test_every_command_on_these_pages_exists():
    known = commands(app) | {str(group.name) for group in app.registered_groups}
    pages = MIGRATION + OPERATIONS + (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^|&& |\.\.\. )mloc ([a-z]+)", pages, flags=re.MULTILINE))
    assert named - known == set()
    assert {"up", "serve", "bridge", "worker", "submit", "results"} <= named


def test_the_services_of_the_compose_file_are_commands_with_known_settings():
    services = COMPOSE["services"]
    assert set(services) == {part.name for part in PROFILE}
    words = {name: services[name]["command"] for name in ("endpoint", "bridge", "coordinator", "worker")}
    assert words["endpoint"][:1] == ["serve"]
    assert words["bridge"] == ["bridge"]
    assert words["coordinator"] == ["worker", "start", "--coordinator-only"]
    assert words["worker"] == ["worker", "start"]
    ours = {name for setting in MlocSettings.model_fields for name in aliases(setting)}
    known = ours | {"PREFECT_REDIS_MESSAGING_URL"}
    for name in set(services) - {"redis", "postgres"}:
        unknown = set(services[name]["environment"]) - known
        assert [variable for variable in unknown if not hasattr(prefect.settings, variable)] == [], name


def test_the_compose_file_has_results_on_nfs_secrets_required_and_redis_in_three_databases():
    results = COMPOSE["volumes"]["results"]["driver_opts"]
    assert results["type"] == "nfs"
    assert "hard" in results["o"]
    services = COMPOSE["services"]
    for name in ("endpoint", "bridge", "coordinator", "worker"):
        assert services[name]["volumes"] == ["results:/results"]
        assert services[name]["environment"]["RESULTS_DIR"] == "/results"
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert required == {"REDIS_PASSWORD", "PREFECT_AUTH", "MLOC_TOKEN", "POSTGRES_PASSWORD", "NFS_SERVER"}
    example = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / "deploy" / "example.env").read_text(), flags=re.MULTILINE))
    optional = set(re.findall(r"\$\{([A-Z_]+):-", text))
    assert required <= example
    assert optional - example <= {"ENDPOINT_BIND"}
    worker, prefect = services["worker"]["environment"], services["prefect"]["environment"]
    assert worker["REDIS_URL"].endswith("/0")
    assert worker["MLOC_EVENTS_REDIS_URL"].endswith("/1")
    assert prefect["PREFECT_REDIS_MESSAGING_URL"].endswith("/1")
    assert prefect["PREFECT_SERVER_DOCKET_URL"].endswith("/2")


@pytest.mark.parametrize("service", ["coordinator", "worker"])
def test_a_worker_has_time_to_drain_and_to_hand_its_runs_over(service):
    command = COMPOSE["services"][service]["command"]
    assert command[:2] == ["worker", "start"]
    grace = int(re.fullmatch(r"(\d+)s", COMPOSE["services"][service]["stop_grace_period"])[1])
    assert grace >= MlocSettings.model_fields["drain_seconds"].default + 40, "drain, then settle claims and end runs"


def test_no_other_service_runs_a_worker():
    workers = {name for name, service in COMPOSE["services"].items() if "worker" in service.get("command", ())}
    assert workers == {"coordinator", "worker"}


def test_the_image_is_built_from_all_that_the_package_links_to():
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    links = [path.readlink() for path in (ROOT / "mloc_prefect").iterdir() if path.is_symlink()]
    assert {str(link) for link in links} == {"../constraints", "../templates"}
    for name in ("mloc_prefect", *(link.name for link in links)):
        assert [name] in copied


def test_workers_get_an_image_with_what_inference_and_training_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    build, others = COMPOSE["services"]["worker"]["build"], COMPOSE["services"]["bridge"]
    named = re.fullmatch(r"\$\{WORKER_EXTRAS:-(.+)\}", build["args"]["EXTRAS"])[1].split(",")
    assert {"server", "redis", "train"} <= set(named) <= set(extras)
    assert "mloc-prefect[transformers]" in extras["train"]
    assert build.keys() - others["build"].keys() == {"args"}
    assert {key for key in others["build"] if build[key] != others["build"][key]} == {"target"}
    assert COMPOSE["services"]["worker"]["image"] != others["image"], "one would replace the other"


@pytest.mark.parametrize("unit", ["mloc-up", "mloc-worker"])
def test_the_units_start_commands_that_tell_when_they_are_ready(unit):
    text = (ROOT / "deploy" / "systemd" / f"{unit}.service").read_text(encoding="utf-8")
    assert "Type=notify" in text
    assert "KillMode=mixed" in text
    assert re.search(r"^ExecStart=/opt/mloc/bin/mloc (up|worker start)$", text, flags=re.MULTILINE)


def test_the_samples_are_shell_and_use_curl_alone():
    samples = sorted((ROOT / "samples").glob("*.sh"))
    assert len(samples) >= 8
    for sample in samples:
        assert subprocess.run(["sh", "-n", str(sample)], check=False).returncode == 0, sample
        text = sample.read_text(encoding="utf-8")
        assert not re.search(r"\b(jq|wget|python)\b", text), sample
        assert f"samples/{sample.name}" in text or sample.name == "common.sh"


def run_sample(tmp_path, name, *arguments, body="", code=0):
    """Run a sample with a curl that answers at once: with `body` (into the file of `-o`), a message, and a code."""
    curl = tmp_path / "curl"
    curl.write_text(
        '#!/bin/sh\nout=/dev/stdout\nwhile [ $# -gt 0 ]; do [ "$1" != -o ] || out=$2; shift; done\n'
        f"printf '%s' '{body}' >>\"$out\"\necho 'curl: ({code}) it says' >&2\nexit {code}\n"
    )
    curl.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(ROOT / "samples" / name), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["cancel", "download", "poll", "run", "submit", "upload"])
def test_samples_without_arguments_tell_their_usage(tmp_path, name):
    usage = re.search(rf"^#   (samples/{name}\.sh .+)$", (ROOT / "samples" / f"{name}.sh").read_text(), re.MULTILINE)
    done = run_sample(tmp_path, f"{name}.sh")
    assert usage
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"usage: {usage[1]}")


def test_samples_show_why_the_endpoint_refuses(tmp_path):
    answer = '{"detail":"task not found"}'
    for name, arguments in (("poll.sh", ["nope"]), ("download.sh", ["nope", str(tmp_path / "out")])):
        done = run_sample(tmp_path, name, *arguments, body=answer, code=22)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"nope: {answer}\n" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_listening_ends_without_an_error_when_its_time_is_over(tmp_path):
    done = run_sample(tmp_path, "listen.sh", "1", body="data: x", code=28)
    assert (done.returncode, done.stdout, done.stderr) == (0, "data: x", "")
    gone = run_sample(tmp_path, "listen.sh", code=7)
    assert (gone.returncode, gone.stdout, gone.stderr) == (7, "", "curl: (7) it says\n")


def test_every_sample_is_run_by_a_test():
    tests = (ROOT / "tests" / "integration" / "test_up.py").read_text(encoding="utf-8")
    run = {"common.sh", *re.findall(r'"(\w+\.sh)"', tests)}
    called = (ROOT / "samples" / "run.sh").read_text(encoding="utf-8")
    run |= set(re.findall(r"\$here/(\w+\.sh)", called))
    assert {sample.name for sample in (ROOT / "samples").glob("*.sh")} == run
