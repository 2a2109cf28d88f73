"""Which Prefect server is meant, and Prefect's own output kept off the screen."""

from __future__ import annotations

import os

# Prefect reads these when it is imported; the lines still reach the run's page through the API.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def configured_api_url() -> str | None:
    """Return the API address of the environment or of the active Prefect profile, or None when neither has one."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or None


def quiet_prefect() -> None:
    """Keep Prefect's console lines away; call it before Prefect is imported. Variables that are set stay."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
