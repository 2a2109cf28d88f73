"""Settings: one object, read on use, `MLOC_<NAME>` with MLOC's original variables as aliases.

Precedence: explicit argument (CLI), environment, `$MLOC_HOME/config.toml`, default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mloc_prefect.settings_sources import config_file, default_home, fault, origin, unknown_keys


def _names(name: str, *originals: str) -> AliasChoices:
    """Return the variables of one setting, first wins: ours, MLOC's originals, Prefect's integration name."""
    return AliasChoices(f"MLOC_{name}", *originals, f"PREFECT_INTEGRATIONS_MLOC_{name}")


class MlocSettings(BaseSettings):
    """All settings of the project."""

    # Field names are for arguments and config.toml; the prefix keeps $HOME, $TOKEN or $PYTHON from being read by them.
    model_config = SettingsConfigDict(
        extra="ignore", populate_by_name=True, env_prefix="MLOC_", env_ignore_empty=True, validate_default=True
    )

    home: Path = Field(
        default_factory=default_home,
        validation_alias=_names("HOME"),
        description="State directory of embedded servers, warm hosts and models.",
    )
    results_dir: Path | None = Field(
        default=None,
        validation_alias=_names("RESULTS_DIR", "RESULTS_DIR", "ORCHESTRATOR_RESULTS_DIR"),
        description="Root of task results; default `$MLOC_HOME/results`.",
    )
    mirrors: Path | None = Field(
        default=None,
        validation_alias=_names("MIRRORS"),
        description="Mirrors file (`models:` and `datasets:` maps); default `$MLOC_HOME/mirrors.yaml` when it exists.",
    )
    allow_outside_results: bool = Field(
        default=False,
        validation_alias=_names("ALLOW_OUTSIDE_RESULTS"),
        description="Let `output.destination.path` leave the results root.",
    )
    allowed_hosts: str = Field(
        default="",
        validation_alias=_names("ALLOWED_HOSTS"),
        description="Comma list of hosts that destinations and checkpoints may name, beside our own endpoint.",
    )
    base_url: str | None = Field(
        default=None,
        validation_alias=_names("BASE_URL", "ORCHESTRATOR_BASE_URL"),
        description="URL of the MLOC HTTP endpoint as workers see it.",
    )
    allowed_env: str = Field(
        default="",
        validation_alias=_names("ALLOWED_ENV"),
        description="Comma list of environment variables that `${env.NAME}` may read.",
    )
    allowed_rewards: str = Field(
        default="",
        validation_alias=_names("ALLOWED_REWARDS"),
        description="Comma list of Python modules whose functions specs may name as rewards (`rewards[].path`).",
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
        description="Seconds; retry n waits base x 2^n.",
    )
    retry_max_delay: float = Field(
        default=300.0,
        ge=0,
        validation_alias=_names("RETRY_MAX_DELAY", "RETRY_MAX_DELAY_SEC"),
        description="Longest wait before a retry, seconds.",
    )
    stall_seconds: float = Field(
        default=1800.0,
        gt=0,
        validation_alias=_names("STALL_SECONDS"),
        description="A host that reports nothing for so long is ended and the attempt fails.",
    )
    host_idle_seconds: float = Field(
        default=600.0,
        ge=0,
        validation_alias=_names("HOST_IDLE_SECONDS"),
        description="A warm executor without work leaves after this time; 0 = one-shot.",
    )
    host_start_seconds: float = Field(
        default=120.0,
        gt=0,
        validation_alias=_names("HOST_START_SECONDS"),
        description="Longest time until a host process listens (models load later).",
    )
    runtime_idle_seconds: float = Field(
        default=3600.0,
        gt=0,
        validation_alias=_names("RUNTIME_IDLE_SECONDS"),
        description="The local runtime (embedded server, warm hosts) leaves after this time without a run.",
    )
    engines_per_device: int = Field(
        default=1,
        ge=1,
        le=64,
        validation_alias=_names("ENGINES_PER_DEVICE"),
        description="Engines that may run at once on one GPU, or on the CPU of a machine without one.",
    )
    reserve_seconds: float = Field(
        default=30.0,
        ge=0,
        validation_alias=_names("RESERVE_SECONDS"),
        description="Smaller tasks pass one that waits for devices for so long; then it keeps what it needs.",
    )
    python: dict[str, Path] = Field(
        default_factory=dict,
        validation_alias=_names("PYTHON"),
        description='Interpreters of executors, JSON, e.g. {"vllm": "/envs/vllm/bin/python"}; default: ours.',
    )
    server_port: int = Field(
        default=4200,
        ge=1,
        le=65535,
        validation_alias=_names("SERVER_PORT"),
        description="Wanted port of the embedded Prefect server; the next free one is taken when it is in use.",
    )
    max_spec_bytes: int = Field(
        default=1 << 20, ge=1024, validation_alias=_names("MAX_SPEC_BYTES"), description="Largest accepted spec, bytes."
    )
    vllm_cpu: bool = Field(
        default=False,
        validation_alias=_names("VLLM_CPU"),
        description="Run inference without a GPU on vLLM where the environment `vllm-cpu` is built.",
    )
    inventory: str | None = Field(
        default=None,
        validation_alias=_names("INVENTORY"),
        description="Declared hardware (JSON or a file) instead of what the machine shows.",
    )

    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=_names("REDIS_URL", "REDIS_URL"),
        description="Redis or Valkey of the MLOC face (records, journal, worker registry, channels).",
    )
    events_redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=_names("EVENTS_REDIS_URL", "PREFECT_REDIS_MESSAGING_URL"),
        description="Redis of Prefect's own messaging, which the bridge follows; without it, Prefect's websocket.",
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
        description="Wanted port of the embedded Valkey; the next free one is taken when it is in use.",
    )
    redis_fsync: Literal["everysec", "always"] = Field(
        default="everysec",
        validation_alias=_names("REDIS_FSYNC"),
        description="When the embedded Valkey puts its log on disk: what a power cut can lose.",
    )
    token: SecretStr | None = Field(
        default=None,
        validation_alias=_names("TOKEN", "ORCHESTRATOR_TOKEN"),
        description="Bearer token of the HTTP endpoint; for clients, the one to send.",
    )
    url: str = Field(
        default="http://127.0.0.1:8000",
        validation_alias=_names("URL"),
        description="HTTP endpoint that the client commands talk to.",
    )
    host: str | None = Field(
        default=None,
        validation_alias=_names("HOST", "HOST_APP_HOST"),
        description="Address that the endpoint listens on; default: all with a token, loopback without.",
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
        description="Largest uploaded file, bytes; 0 = no limit.",
    )
    max_result_bytes: int = Field(
        default=256 << 20,
        ge=0,
        validation_alias=_names("MAX_RESULT_BYTES"),
        description="Largest posted result, bytes; it is held in memory. 0 = no limit.",
    )
    work_pool: str = Field(
        default="gpu",
        validation_alias=_names("WORK_POOL"),
        description="Prefect work pool that runs and their stages are sent to.",
    )
    worker_id: str | None = Field(
        default=None,
        validation_alias=_names("WORKER_ID", "WORKER_ID"),
        description="Name of this worker for placement and dashboards; default: host name and a random part.",
    )
    worker_tags: str = Field(
        default="",
        validation_alias=_names("WORKER_TAGS", "WORKER_TAGS"),
        description="Comma list of words that specs can ask for, beside those of the inventory.",
    )
    heartbeat_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias=_names("HEARTBEAT_SECONDS", "HEARTBEAT_INTERVAL_SEC"),
        description="Seconds between heartbeats of a worker.",
    )
    heartbeat_ttl: float = Field(
        default=30.0,
        gt=0,
        validation_alias=_names("HEARTBEAT_TTL", "HEARTBEAT_TTL_SEC"),
        description="Seconds without a heartbeat, three of them at least, until a worker is gone and its runs go on.",
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        validation_alias=_names("DRAIN_SECONDS"),
        description="How long a worker that is stopped lets its runs end before it gives them up to others.",
    )
    max_auto_shards: int = Field(
        default=8,
        ge=1,
        validation_alias=_names("MAX_AUTO_SHARDS", "MAX_AUTO_SHARDS"),
        description="Most data-parallel shards of a task that names no number.",
    )
    dispatch: Literal["auto", "ours", "original"] = Field(
        default="auto",
        validation_alias=_names("DISPATCH"),
        description="Workers that stages go to: ours, those of the original protocol, or ours first (`auto`).",
    )
    cpu_only_weight: float = Field(
        default=0.6,
        ge=0,
        validation_alias=_names("CPU_ONLY_WEIGHT", "CPU_ONLY_WEIGHT"),
        description="What an idle worker of the original protocol without GPUs counts, see `low_avail_ratio`.",
    )
    gpu_weight: float = Field(
        default=1.0,
        ge=0,
        validation_alias=_names("GPU_WEIGHT", "GPU_WEIGHT"),
        description="What an idle one with GPUs counts.",
    )
    low_avail_ratio: float = Field(
        default=0.6,
        ge=0,
        validation_alias=_names("LOW_AVAIL_RATIO", "LOW_AVAIL_RATIO"),
        description="Sum of these for each waiting task up to which the first idle one is taken, not the best one.",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO",
        validation_alias=_names("LOG_LEVEL", "LOG_LEVEL", "HOST_APP_LOG_LEVEL"),
        description="Least level of the log lines of `up`, `serve`, `bridge` and `worker start`.",
    )
    log_file: Path | None = Field(
        default=None,
        validation_alias=_names("LOG_FILE", "LOG_FILE"),
        description="File that gets the log lines too; for `up`, those of all parts.",
    )
    log_max_bytes: int = Field(
        default=5 << 20,
        ge=0,
        validation_alias=_names("LOG_MAX_BYTES", "LOG_MAX_BYTES"),
        description="Size at which that file is rotated; 0 = never.",
    )
    log_backup_count: int = Field(
        default=5,
        ge=0,
        validation_alias=_names("LOG_BACKUP_COUNT", "LOG_BACKUP_COUNT"),
        description="Rotated log files that are kept.",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        other = {"WARN": "WARNING", "TRACE": "DEBUG", "FATAL": "CRITICAL"}  # names that other programs know
        return other.get(value.upper(), value.upper()) if isinstance(value, str) else value

    @property
    def results_root(self) -> Path:
        """Absolute root of task results."""
        return (self.results_dir or self.home / "results").expanduser().absolute()

    @property
    def mirrors_file(self) -> Path | None:
        """The mirrors file in force, or None."""
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
        """Put `$MLOC_HOME/config.toml` below the environment."""
        del dotenv_settings, file_secret_settings
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return init_settings, env_settings, toml


def get_settings(**overrides: Any) -> MlocSettings:
    """Return the settings in force now; `overrides` (None = not given) come first.

    Raises:
        SettingsError: A value is out of bounds or of the wrong type, or the config file cannot be read; the message
            names the variable, or the file, that was set.
    """
    given = {k: v for k, v in overrides.items() if v is not None}
    try:
        return MlocSettings(**given)
    except (ValueError, OSError) as error:  # ValidationError, SettingsError, TOMLDecodeError, UnicodeDecodeError
        raise fault(error, MlocSettings.model_fields, given) from None


def settings_warnings() -> list[str]:
    """Return a line for each key of the config file that is no setting."""
    return list(unknown_keys(MlocSettings.model_fields))


def where_set(name: str) -> str:
    """Return the variable, or the key and its file, that a setting has its value from; its first variable if none."""
    return origin(name, MlocSettings.model_fields[name], {})[0]
