"""The settings: `MLOC_<NAME>`, with MLOC's original variables as aliases.

Precedence: explicit argument (CLI), environment, `$MLOC_HOME/config.toml`, default. Call `get_settings()` where a value
is used, never on import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mloc_prefect.process.port_ranges import UNPRIVILEGED, port_ranges
from mloc_prefect.settings_limits import LimitSettings
from mloc_prefect.settings_limits import names as _names
from mloc_prefect.settings_sources import config_file, default_home, fault, folder_text, origin, unknown_keys


class MlocSettings(LimitSettings):
    """All settings of the project."""

    # Field names serve as arguments and config keys. Without the prefix they would also read $HOME, $TOKEN and $PYTHON.
    model_config = SettingsConfigDict(
        extra="ignore", populate_by_name=True, env_prefix="MLOC_", env_ignore_empty=True, validate_default=True
    )

    home: Path = Field(
        default_factory=default_home,
        validation_alias=_names("HOME"),
        description="Directory for state: embedded servers, warm hosts, environments and models.",
    )
    results_dir: Path | None = Field(
        default=None,
        validation_alias=_names("RESULTS_DIR", "RESULTS_DIR", "ORCHESTRATOR_RESULTS_DIR"),
        description="Root directory of task results; default `$MLOC_HOME/results`.",
    )
    mirrors: Path | None = Field(
        default=None,
        validation_alias=_names("MIRRORS"),
        description="Mirrors file (`models:` and `datasets:` maps); default `$MLOC_HOME/mirrors.yaml` if it exists.",
    )
    allow_outside_results: bool = Field(
        default=False,
        validation_alias=_names("ALLOW_OUTSIDE_RESULTS"),
        description="Allow `output.destination.path` to point outside the results root.",
    )
    allowed_hosts: str = Field(
        default="",
        validation_alias=_names("ALLOWED_HOSTS"),
        description="Comma-separated hosts that destinations and checkpoints may name, in addition to this endpoint.",
    )
    loopback_ports: str = Field(
        default=UNPRIVILEGED,
        validation_alias=_names("LOOPBACK_PORTS"),
        description="Ports of the loopback that specs may call: a comma list of numbers and ranges; never our own.",
    )
    base_url: str | None = Field(
        default=None,
        validation_alias=_names("BASE_URL", "ORCHESTRATOR_BASE_URL"),
        description="URL at which workers reach the MLOC HTTP endpoint.",
    )
    allowed_env: str = Field(
        default="",
        validation_alias=_names("ALLOWED_ENV"),
        description="Comma-separated environment variables that `${env.NAME}` may read.",
    )
    allowed_rewards: str = Field(
        default="",
        validation_alias=_names("ALLOWED_REWARDS"),
        description="Comma-separated Python modules whose functions specs may use as rewards (`rewards[].path`).",
    )
    allow_remote_code: str = Field(
        default="off",
        validation_alias=_names("ALLOW_REMOTE_CODE"),
        description="Code of models and data sets that may run: `off`, `on`, or a comma list of their names.",
    )
    data_roots: str = Field(
        default="",
        validation_alias=_names("DATA_ROOTS"),
        description="Comma-separated folders that submitted specs may read, besides results and working directory.",
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        le=100,
        validation_alias=_names("MAX_RETRIES"),
        description="Retries of a stage after its first attempt.",
    )
    retry_base_delay: float = Field(
        default=5.0,
        ge=0,
        validation_alias=_names("RETRY_BASE_DELAY", "RETRY_BASE_DELAY_SEC"),
        description="Base delay in seconds; retry n waits base x 2^n.",
    )
    retry_max_delay: float = Field(
        default=300.0,
        ge=0,
        validation_alias=_names("RETRY_MAX_DELAY", "RETRY_MAX_DELAY_SEC"),
        description="Longest delay before a retry, in seconds.",
    )
    stall_seconds: float = Field(
        default=1800.0,
        gt=0,
        validation_alias=_names("STALL_SECONDS"),
        description="Seconds without a report from a host before it is killed and the attempt fails.",
    )
    host_idle_seconds: float = Field(
        default=600.0,
        ge=0,
        validation_alias=_names("HOST_IDLE_SECONDS"),
        description="Seconds that an idle executor stays warm; 0 = exit after each task.",
    )
    host_start_seconds: float = Field(
        default=120.0,
        gt=0,
        validation_alias=_names("HOST_START_SECONDS"),
        description="Seconds that a host process may take to start listening (models load later).",
    )
    runtime_idle_seconds: float = Field(
        default=3600.0,
        gt=0,
        validation_alias=_names("RUNTIME_IDLE_SECONDS"),
        description="Seconds without a run before the local runtime (embedded server, warm hosts) exits.",
    )
    engines_per_device: int = Field(
        default=1,
        ge=1,
        le=64,
        validation_alias=_names("ENGINES_PER_DEVICE"),
        description="Engines that may run at the same time on one GPU, or on the CPU of a machine without a GPU.",
    )
    reserve_seconds: float = Field(
        default=30.0,
        ge=0,
        validation_alias=_names("RESERVE_SECONDS"),
        description="Seconds for which smaller tasks may overtake a waiting one; after that, devices are reserved.",
    )
    python: dict[str, Path] = Field(
        default_factory=dict,
        validation_alias=_names("PYTHON"),
        description='Interpreters of executors as JSON: {"vllm": "/envs/vllm/bin/python"}; default: the current one.',
    )
    server_port: int = Field(
        default=4200,
        ge=1,
        le=65535,
        validation_alias=_names("SERVER_PORT"),
        description="Preferred port of the embedded Prefect server; if it is in use, the next free port is taken.",
    )
    max_spec_bytes: int = Field(
        default=1 << 20,
        ge=1024,
        validation_alias=_names("MAX_SPEC_BYTES"),
        description="Largest spec that the endpoint and its workers accept, in bytes. Commands keep to the default.",
    )
    max_tasks: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        validation_alias=_names("MAX_TASKS"),
        description="Most stages or graph nodes in a submission to the endpoint. Commands keep to the default.",
    )
    vllm_cpu: bool = Field(
        default=False,
        validation_alias=_names("VLLM_CPU"),
        description="Run inference without a GPU on vLLM if the environment `vllm-cpu` is built.",
    )
    inventory: str | None = Field(
        default=None,
        validation_alias=_names("INVENTORY"),
        description="Hardware to declare (JSON or a file) instead of what the machine reports.",
    )

    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=_names("REDIS_URL", "REDIS_URL"),
        description="Redis or Valkey that holds task records, journal, worker registry and channels.",
    )
    events_redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=_names("EVENTS_REDIS_URL", "PREFECT_REDIS_MESSAGING_URL"),
        description="Redis of Prefect's own messaging, where the bridge reads events; default: Prefect's websocket.",
    )
    reconcile_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias=_names("RECONCILE_SECONDS"),
        description="Seconds between comparisons of the task records with Prefect.",
    )
    redis_port: int = Field(
        default=6379,
        ge=1,
        le=65535,
        validation_alias=_names("REDIS_PORT"),
        description="Preferred port of the embedded Valkey; if it is in use, the next free port is taken.",
    )
    redis_fsync: Literal["everysec", "always"] = Field(
        default="everysec",
        validation_alias=_names("REDIS_FSYNC"),
        description="How often the embedded Valkey syncs its log to disk; decides what a power cut can lose.",
    )
    token: SecretStr | None = Field(
        default=None,
        validation_alias=_names("TOKEN", "ORCHESTRATOR_TOKEN"),
        description="Bearer token of the HTTP endpoint; client commands send it.",
    )
    url: str = Field(
        default="http://127.0.0.1:8000",
        validation_alias=_names("URL"),
        description="HTTP endpoint that the client commands use.",
    )
    host: str | None = Field(
        default=None,
        validation_alias=_names("HOST", "HOST_APP_HOST"),
        description="Address that the endpoint listens on; default: all interfaces with a token, loopback without.",
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias=_names("PORT", "PORT", "HOST_APP_PORT"),
        description="Port of the HTTP endpoint.",
    )
    max_upload_bytes: int = Field(
        default=0,
        ge=0,
        validation_alias=_names("MAX_UPLOAD_BYTES"),
        description="Largest uploaded file, in bytes; 0 = no limit.",
    )
    max_result_bytes: int = Field(
        default=256 << 20,
        ge=0,
        validation_alias=_names("MAX_RESULT_BYTES"),
        description="Largest posted result, in bytes (it is held in memory); 0 = no limit.",
    )
    work_pool: str = Field(
        default="gpu",
        validation_alias=_names("WORK_POOL"),
        description="Prefect work pool for workflow runs and their stages.",
    )
    worker_id: str | None = Field(
        default=None,
        validation_alias=_names("WORKER_ID", "WORKER_ID"),
        description="Name of this worker for placement and dashboards; default: host name and a random suffix.",
    )
    worker_tags: str = Field(
        default="",
        validation_alias=_names("WORKER_TAGS", "WORKER_TAGS"),
        description="Comma-separated tags that specs can require, in addition to the tags of the inventory.",
    )
    heartbeat_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias=_names("HEARTBEAT_SECONDS", "HEARTBEAT_INTERVAL_SEC"),
        description="Seconds between two heartbeats of a worker.",
    )
    heartbeat_ttl: float = Field(
        default=30.0,
        gt=0,
        validation_alias=_names("HEARTBEAT_TTL", "HEARTBEAT_TTL_SEC"),
        description="Seconds without a heartbeat before a worker counts as lost; at least three heartbeats.",
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        validation_alias=_names("DRAIN_SECONDS"),
        description="Seconds that a stopping worker waits for its runs to end before it hands them over.",
    )
    max_auto_shards: int = Field(
        default=8,
        ge=1,
        validation_alias=_names("MAX_AUTO_SHARDS", "MAX_AUTO_SHARDS"),
        description="Most data-parallel shards of a task that does not name a number.",
    )
    dispatch: Literal["auto", "ours", "original"] = Field(
        default="auto",
        validation_alias=_names("DISPATCH"),
        description="Workers that run stages: this project's (`ours`), MLOC's (`original`), or `ours` first (`auto`).",
    )
    cpu_only_weight: float = Field(
        default=0.6,
        ge=0,
        validation_alias=_names("CPU_ONLY_WEIGHT", "CPU_ONLY_WEIGHT"),
        description="Weight of an idle MLOC worker without a GPU when estimating capacity, see `low_avail_ratio`.",
    )
    gpu_weight: float = Field(
        default=1.0,
        ge=0,
        validation_alias=_names("GPU_WEIGHT", "GPU_WEIGHT"),
        description="Weight of an idle MLOC worker with a GPU when estimating capacity.",
    )
    low_avail_ratio: float = Field(
        default=0.6,
        ge=0,
        validation_alias=_names("LOW_AVAIL_RATIO", "LOW_AVAIL_RATIO"),
        description="Capacity per waiting task up to which the first idle MLOC worker is taken, not the best one.",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO",
        validation_alias=_names("LOG_LEVEL", "LOG_LEVEL", "HOST_APP_LOG_LEVEL"),
        description="Lowest level of log lines of `up`, `serve`, `bridge` and `worker start`.",
    )
    log_file: Path | None = Field(
        default=None,
        validation_alias=_names("LOG_FILE", "LOG_FILE"),
        description="File to log to in addition to standard error; `up` writes the lines of all its parts there.",
    )
    log_max_bytes: int = Field(
        default=5 << 20,
        ge=0,
        validation_alias=_names("LOG_MAX_BYTES", "LOG_MAX_BYTES"),
        description="Size in bytes at which the log file is rotated; 0 = never.",
    )
    log_backup_count: int = Field(
        default=5,
        ge=0,
        validation_alias=_names("LOG_BACKUP_COUNT", "LOG_BACKUP_COUNT"),
        description="Number of rotated log files to keep.",
    )

    @field_validator("home", "results_dir", "mirrors", "log_file", mode="before")
    @classmethod
    def _on_this_machine(cls, value: object) -> object:
        return value if value is None else folder_text(value)

    @field_validator("python", mode="before")
    @classmethod
    def _interpreters_on_this_machine(cls, value: object) -> object:
        return {k: folder_text(v) for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("loopback_ports")
    @classmethod
    def _check_ports(cls, value: str) -> str:
        port_ranges(value)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _normalize_level(cls, value: object) -> object:
        synonyms = {"WARN": "WARNING", "TRACE": "DEBUG", "FATAL": "CRITICAL"}  # levels of other programs
        return synonyms.get(value.upper(), value.upper()) if isinstance(value, str) else value

    @property
    def results_root(self) -> Path:
        """Absolute root of task results."""
        return (self.results_dir or self.home / "results").expanduser().absolute()

    @property
    def mirrors_file(self) -> Path | None:
        """The mirrors file to use, or None."""
        if self.mirrors:
            return self.mirrors.expanduser().absolute()
        default = self.home / "mirrors.yaml"
        return default if default.is_file() else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read `$MLOC_HOME/config.toml` after the environment."""
        del dotenv_settings, file_secret_settings
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return init_settings, env_settings, toml


def get_settings(**overrides: Any) -> MlocSettings:
    """Read the settings; `overrides` win over every other source, unless they are None.

    Raises:
        SettingsError: A value is out of bounds or has the wrong type, or the config file cannot be read. The message
            names the variable or the file.
    """
    given = {k: v for k, v in overrides.items() if v is not None}
    try:
        return MlocSettings(**given)
    except (ValueError, OSError) as error:  # ValidationError, SettingsError, TOMLDecodeError, UnicodeDecodeError
        raise fault(error, MlocSettings.model_fields, given) from None


def settings_warnings() -> list[str]:
    """Return a warning for each key of the config file that is not a setting."""
    return list(unknown_keys(MlocSettings.model_fields))


def where_set(name: str) -> str:
    """Return where a setting was set: a variable, or a key and its file. If nowhere, its first variable."""
    return origin(name, MlocSettings.model_fields[name], {})[0]
