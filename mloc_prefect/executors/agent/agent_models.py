"""Language models behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from mloc_prefect.executors.agent.guarded_http import guarded_client

if TYPE_CHECKING:
    import httpx

    from mloc_prefect.executors.agent.agent_job import ModelAccess

_RETRIES = 3  # of one request, with growing waits; connections and answers that may pass only
_ANSWER_BYTES = 32 << 20
_WITHOUT_KEY = "none"  # the client insists on a text


def endpoint_client(access: ModelAccess, seconds: float) -> httpx.AsyncClient:
    """Return the HTTP client of an endpoint; it follows no redirects, which would take the key along."""
    return guarded_client(access.allowed, most_bytes=_ANSWER_BYTES, timeout=seconds)


def endpoint_model(access: ModelAccess, client: httpx.AsyncClient) -> Any:
    """Return the model at an endpoint.

    Args:
        access: Where it is.
        client: From `endpoint_client`.
    """
    from openai import AsyncOpenAI

    # The library would add these headers, which may have keys of the operator, towards any endpoint.
    os.environ.pop("OPENAI_CUSTOM_HEADERS", None)
    talker = AsyncOpenAI(
        base_url=access.base_url,
        api_key=access.api_key or _WITHOUT_KEY,
        admin_api_key="",  # what is None would be read from the variables of the worker
        organization="",
        project="",
        webhook_secret="",
        http_client=client,
        max_retries=_RETRIES,
    )
    return OpenAIChatModel(access.name, provider=OpenAIProvider(openai_client=talker), settings=model_settings(access))


def model_settings(access: ModelAccess) -> Any:
    """Return the settings of requests; what is not named is left to the endpoint."""
    known = {"temperature": access.temperature, "seed": access.seed, "max_tokens": access.max_response_tokens}
    return {name: value for name, value in known.items() if value is not None}
