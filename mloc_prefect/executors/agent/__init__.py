"""LLM agents with pydantic-ai: a model that calls tools until it has an answer, for one or many tasks.

What an agent may do is decided before the first request, from the operator's settings, the configuration and the spec;
nothing that a model or a tool returns changes it. It must not know Prefect. Requests name the class as
`mloc_prefect.executors.agent:AgentExecutor`, which stored plans contain.

* `agent_executor`: the executor class: all items of a task, one after another or several at once.
* `agent_files`: answers, traces and the summary as files of the task.
* `agent_job`: what a request asks for.
* `agent_models`: models behind an OpenAI-compatible endpoint.
* `agent_tools`: the tools: files of the task, pages, Python.
* `engine_model`: a model that this process has loaded.
* `guarded_http`: HTTP clients that call allowed hosts only.
* `item_run`: one item within its limits.
* `item_steps`: the steps of an item, recorded and replayed.
* `mcp_tools`: tools of MCP servers.
* `sandbox`: runs code of a model, shut off from this machine.
* `search_tool`: passages of collections.
* `step_journal`: the file of finished steps.
"""

from mloc_prefect.executors.agent.agent_executor import AgentExecutor, LocalAgentExecutor

__all__ = ["AgentExecutor", "LocalAgentExecutor"]
