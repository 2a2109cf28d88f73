"""Configurations of agents: their files, and what specs may ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.errors import PlanError
from mloc_prefect.trust.agent_configurations import AgentSite, check_agent

ENDPOINT = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.fixture
def site(tmp_path: Path) -> AgentSite:
    return AgentSite(tmp_path)


def write(site: AgentSite, text: str, name: str = "own") -> None:
    assert site.folder is not None
    path = site.folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_our_own_configurations_are_valid() -> None:
    site = AgentSite()
    assert {"default", "simple_search", "examples/search_agent", "examples/paper_collector"} <= set(site.names())
    for name in site.names():
        found = site.configuration(name)
        assert found.instructions
        assert "python" not in found.tools


def test_a_configuration_of_the_operator_wins_and_is_read_whole(site: AgentSite) -> None:
    write(
        site,
        "instructions: be brief\n"
        "tools: [fetch, python]\n"
        "hosts: [Docs.Example]\n"
        "model: {base_url: 'http://m/v1', name: big, api_key_env: BIG_KEY}\n"
        "limits: {steps: 3, tokens: 0}\n"
        "mcp:\n  shop: {command: [shop, --stdio], env: {A: 1}, tools: [price]}\n  web: {url: 'http://w/mcp'}\n",
        "default",
    )
    found = site.configuration("default")
    assert (found.instructions, found.tools, found.hosts) == ("be brief", ("fetch", "python"), ("docs.example",))
    assert (found.endpoint.name, found.endpoint.api_key_env) == ("big", "BIG_KEY")
    assert (found.limits.steps, found.limits.tokens, found.limits.tool_calls) == (3, 0, 50)
    shop, web = found.servers
    assert (shop.command, dict(shop.env), shop.tools) == (("shop", "--stdio"), {"A": "1"}, ("price",))
    assert (web.url, web.tools) == ("http://w/mcp", None)
    assert found.narrowed(["web", "fetch"]).servers == (web,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools: [pyton]", "tools 'pyton' is not a tool"),
        ("tool: [python]", "tool is not a field of configurations"),
        ("tools: python", "tools must be a list of texts"),
        ("limits: {steps: 0}", "limits.steps must be a whole number of at least 1, found 0"),
        ("limits: {step: 3}", "limits.step is not a field"),
        ("limits: {steps: true}", "limits.steps must be a whole number"),
        ("model: {base_url: m/v1}", "model.base_url must start with http:// or https://"),
        ("model: {api_key_env: sk-1}", "model.api_key_env is the name of a variable, not the key itself"),
        ("mcp: {shop: {}}", "mcp.shop needs either command, a list of texts, or url"),
        ("mcp: {python: {url: 'http://x'}}", "mcp.python a server needs a name of its own"),
        ("tools: [search]", "collections and the tool 'search' need each other"),
        ("tools: [search]\ncollections: {a: {qdrant: {path: x}}}", "collections.a.qdrant.collection is missing"),
        ("instructions: 3", "instructions must be text, found 3"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML: line"),
    ],
)
def test_a_fault_names_file_and_field(site: AgentSite, text: str, said: str) -> None:
    write(site, text)
    with pytest.raises(PlanError) as fault:
        site.configuration("own")
    assert fault.value.message.startswith(f"{site.folder}/own.yaml: ")
    assert said in fault.value.message


def test_a_name_that_is_not_there_is_answered_with_those_that_are(site: AgentSite) -> None:
    write(site, "tools: []", "team/reader")
    with pytest.raises(PlanError) as fault:
        site.configuration("team/raeder")
    assert "there is no configuration 'team/raeder'" in fault.value.message
    assert "team/reader" in str(fault.value.hint)


@pytest.mark.parametrize("name", ["../secrets", "/etc/passwd", "a/../b", ".hidden", "a//b", ""])
def test_a_name_cannot_leave_the_folder(site: AgentSite, name: str) -> None:
    with pytest.raises(PlanError, match="is not the name of a configuration"):
        site.configuration(name)


@pytest.mark.parametrize(
    ("spec", "site", "said"),
    [
        ({}, AgentSite(), "neither the spec nor the operator names a language model"),
        ({"agent": {"base_url": "http://x/v1"}}, AgentSite(), "the endpoint needs the name of a model"),
        ({"agent": {"base_url": "http://x/v1"}}, AgentSite(None, "http://o/v1", "m"), "needs the name of a model"),
        ({}, AgentSite(None, "http://o/v1"), "needs the name of a model"),
        ({"agent": {**ENDPOINT, "tools": ["python"]}}, AgentSite(), "'default' does not allow 'python'"),
        ({"configName": "none", "agent": ENDPOINT}, AgentSite(), "there is no configuration 'none'"),
    ],
)
def test_what_a_spec_may_not_ask(spec: dict[str, Any], site: AgentSite, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        check_agent(spec, site)


@pytest.mark.parametrize(
    ("spec", "site"),
    [
        ({"agent": ENDPOINT}, AgentSite()),
        ({}, AgentSite(None, "http://o/v1", "m")),
        ({"agent": {"model": "other"}}, AgentSite(None, "http://o/v1", "m")),
        ({"model": {"source": {"identifier": "some/model"}}}, AgentSite()),
        ({"agent": {**ENDPOINT, "tools": ["read_file"]}}, AgentSite()),
    ],
)
def test_what_a_spec_may_ask(spec: dict[str, Any], site: AgentSite) -> None:
    assert check_agent(spec, AgentSite.from_wire(site.to_wire())).name == "default"


def test_python_needs_the_consent_of_the_operator(site: AgentSite) -> None:
    write(site, "tools: [python]")
    spec = {"configName": "own", "agent": ENDPOINT}
    with pytest.raises(PlanError, match="which is off on this machine") as fault:
        check_agent(spec, site)
    assert "MLOC_AGENT_PYTHON=on" in str(fault.value.hint)
    assert check_agent(spec, AgentSite(site.folder, python=True)).tools == ("python",)
