"""Rewrite the golden plans and the hashes of effective documents, after a deliberate change: `make golden`.

    python tests/golden/update.py

Look at the difference before it is committed: a changed hash means that MLOC users get another document.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mloc_prefect.plan import WorkflowPlan, check

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"
GOLDEN = Path(__file__).parent
HASHES = GOLDEN / "effective_hashes.json"


def canonical_sha256(document: Any) -> str:
    """Return the hash of a document in the canonical JSON that MLOC's facts use."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plan_of(template: Path) -> WorkflowPlan:
    """Return the plan of a template, which must have neither errors nor warnings."""
    plan, found = check(template.read_bytes(), template.relative_to(ROOT).as_posix())
    if plan is None or found:
        raise SystemExit("\n".join(map(str, found)))
    return plan


def hashes_of(plan: WorkflowPlan) -> dict[str, str]:
    """Return the hash of each effective document by `metadata.name`."""
    return {stage.name: canonical_sha256(stage.effective) for stage in plan.stages}


def main() -> None:
    """Write everything."""
    hashes = {}
    for template in sorted(TEMPLATES.glob("*.yaml")):
        plan = plan_of(template)
        (GOLDEN / f"{template.stem}.plan.txt").write_text(f"{plan}\n", encoding="utf-8")
        hashes[template.name] = hashes_of(plan)
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
