"""The stable import path of the generic flow, which runs any MLOC spec as a Prefect flow run.

    from flows.run_workflow import run_workflow

    await run_workflow(Path("templates/echo.yaml").read_text())

Deployments name the module path `mloc_prefect.orchestrate.entrypoint.run_workflow` instead: only that runs warm.
"""

from mloc_prefect.flow.run_workflow import run_workflow

__all__ = ["run_workflow"]
