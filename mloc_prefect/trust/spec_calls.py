"""The fields of specs that make a worker call another host. Standard library only.

A field that an executor calls stands here, or in `spec_inputs`, whose values may be URLs. What is in neither is not
held to the allowed hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mloc_prefect.trust.spec_inputs import SpecInput, inputs_of, values_at
from mloc_prefect.urls import LOCAL_SCHEMES, scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CALLED = (
    "checkpoint.load.base_url",
    "checkpoint.load.baseUrl",
    "qdrant.url",
    "training.vllm_server_base_url",
)
"""Fields with a URL that is called as it is, in addition to those of `spec_inputs`."""

CALLED_HOSTS = ("training.vllm_server_host",)
"""Fields with the name or the address of a host."""

CALLED_BLOCKS = ("agent", "model.config")
"""Blocks of any form, whose URLs are called: a model service, a server of tools."""

_DESTINATION = "output.destination"


def calls_of(spec: Mapping[str, Any], inputs: Iterable[SpecInput] | None = None) -> Iterator[SpecInput]:
    """Yield every URL of a spec that a worker would call; a host without a scheme as a URL of it.

    Args:
        spec: The spec.
        inputs: What `inputs_of` found in it, if that is known.
    """
    for named in inputs_of(spec) if inputs is None else inputs:
        if "://" in named.text and _is_remote(named.text):
            yield named
    for name in (*CALLED, *CALLED_HOSTS):
        for path, value in values_at(spec, name):
            text = value.strip() if isinstance(value, str) else ""
            if text:
                yield SpecInput(path, "path", f"http://{text}" if name in CALLED_HOSTS and "://" not in text else text)
    for name in CALLED_BLOCKS:
        for path, value in values_at(spec, name):
            yield from _urls_in(path, value)
    yield from _destination(spec)


def _destination(spec: Mapping[str, Any]) -> Iterator[SpecInput]:
    """Yield where the result goes: the URL of an http destination, or a path that is the URL of a store."""
    for path, value in values_at(spec, _DESTINATION):
        if not isinstance(value, Mapping):
            continue
        field = "url" if str(value.get("type") or "").strip().lower() == "http" else "path"
        text = value.get(field)
        if isinstance(text, str) and (field == "url" or _is_remote(text)) and text.strip():
            yield SpecInput((*path, field), "path", text.strip())


def _urls_in(path: tuple[str | int, ...], value: Any) -> Iterator[SpecInput]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _urls_in((*path, str(key)), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _urls_in((*path, index), item)
    elif isinstance(value, str) and _is_remote(value) and not value.strip().count(" "):
        yield SpecInput(path, "path", value.strip())


def _is_remote(text: str) -> bool:
    scheme = scheme_of(text)
    return scheme is not None and scheme not in LOCAL_SCHEMES and "://" in text
