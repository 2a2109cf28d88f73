"""Task types are known by name in `tasks/` and by their executors only; others ask the descriptor."""

from __future__ import annotations

import ast

from mloc_prefect.tasks.registry import TASK_TYPES
from tests.unit.house.test_import_contract import MODULES, PACKAGE, package_of

NAMES = {kind.name for kind in TASK_TYPES} - {"default", "vllm"}
"""Names that stand for a task type only; the two left out are words for other things, too."""

AT_HOME = {"tasks", "executors"}
OTHER_MEANINGS = {
    ("execution/environments/catalog.py", "ppo"): "an environment with the TRL that has PPO",
    ("cli/selftest/trial_specs.py", "inference"): "a block of the spec",
    ("execution/failures.py", "rag"): "an extra of the distribution",
    ("execution/failures.py", "agent"): "an extra of the distribution",
    ("trust/agent_configurations.py", "agent"): "a block of the spec",
    ("trust/spec_calls.py", "agent"): "a block of the spec",
    ("flow/shards/shard_merge.py", "inference"): "a block of the spec, which echo tasks may have too",
    ("server/examples.py", "echo"): "an example for the pages of the API",
    ("spec/required_fields.py", "inference"): "an example in a message",
}


def test_only_tasks_and_executors_name_task_types():
    found = {
        (str(file.relative_to(PACKAGE)), node.value)
        for module, file in MODULES.items()
        if package_of(module) not in AT_HOME
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in NAMES
    }
    assert found - OTHER_MEANINGS.keys() == set(), "ask an attribute of `TaskType` instead"
    assert OTHER_MEANINGS.keys() - found == set(), "an exception that is not needed any more"
