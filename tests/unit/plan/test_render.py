"""Plans for people and for programs."""

from __future__ import annotations

import json
from dataclasses import replace

from mloc_prefect.plan import WorkflowPlan, check

UUID = "3f2b8c1e-0d4a-4f6b-9c7d-1a2b3c4d5e6f"
SPEC = f"""\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: "w"}}
spec:
  taskType: echo
  resources: {{replicas: 1, hardware: {{cpu: "1", memory: 1Gi}}}}
  graph:
    nodes:
      - {{name: 'a "quoted" [x]', spec: {{data: 1}}}}
      - {{name: b, dependsOn: ['a "quoted" [x]', {UUID}]}}
      - {{name: c, spec: {{taskType: sft, data: {{prompts: [x], notes: "${{b.result}}"}}}}}}
      - {{name: d, spec: {{taskType: dpo, data: {{preferences: [{{prompt: a, chosen: b, rejected: c}}]}}}}}}
"""


def _plan() -> WorkflowPlan:
    plan, _ = check(SPEC, "w.yaml")
    assert plan is not None
    return plan


def test_table() -> None:
    column = SPEC.splitlines()[10].index("${b.result}") + 1
    after = f'a "quoted" [x], task {UUID}'
    assert str(_plan()) == (
        "w (graph, 4 tasks)\n"
        "\n"
        "stage           type  model                     needs         after\n"
        f"--------------  ----  ------------------------  ------------  {'-' * len(after)}\n"
        'a "quoted" [x]  echo  -                         1 cpu, 1 GiB  -\n'
        f"b               echo  -                         1 cpu, 1 GiB  {after}\n"
        "c               sft   gpt2                      1 cpu, 1 GiB  b (reads only)\n"
        "d               dpo   microsoft/DialoGPT-small  1 cpu, 1 GiB  -\n"
        "\n"
        "warnings:\n"
        f"w.yaml:11:{column}: warning[not-upstream]: ${{b.result}} reads from 'b', which is not upstream; "
        "this task will wait for it\n"
        "    at spec.graph.nodes[2].spec.data.notes\n"
        "    help: add 'b' to dependsOn"
    )


def test_names_cannot_break_the_table() -> None:
    plan = _plan()  # names of specs have no control characters; those of stored plans may
    plan = replace(plan, stages=tuple(replace(s, key="b\n\x1b[31m") if s.key == "b" else s for s in plan.stages))
    assert "b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m" in str(plan)


def test_json_has_exactly_the_promised_keys() -> None:
    document = json.loads(json.dumps(_plan().to_dict()))
    assert list(document) == ["file", "name", "kind", "tasks"]
    assert [list(task) for task in document["tasks"]] == [["node", "name", "task_type", "depends_on", "effective"]] * 4
    assert document["tasks"][1]["depends_on"] == ['a "quoted" [x]', UUID]
    assert document["tasks"][2]["name"] == "w:c"
    assert document["tasks"][2]["effective"]["spec"]["data"]["notes"] == "${b.result}"


def test_mermaid() -> None:
    assert _plan().to_mermaid().split("\n") == [
        "flowchart LR",
        '    n0["a #34;quoted#34; #91;x#93;<br/>echo"]',
        '    n1["b<br/>echo"]',
        '    n2["c<br/>sft"]',
        '    n3["d<br/>dpo"]',
        "    n0 --> n1",
        f'    n1x0(["task {UUID}"]) --> n1',
        "    n1 -.-> n2",
    ]
