"""Options of a run: everything that is not in the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from mloc_prefect.artifacts.spec_rules import SpecRules
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.settings import MlocSettings, get_settings
from mloc_prefect.store.task_watch import ManifestWatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.flow.dispatcher import StageDispatcher
    from mloc_prefect.flow.observer import RunObserver
    from mloc_prefect.plan.workflow_plan import WorkflowPlan
    from mloc_prefect.store.task_watch import TaskWatch


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run.

    Attributes:
        settings: Settings in force; default: read now.
        results_root: Root of task results; default: that of the settings.
        dispatcher: Executes attempts; None: that of `use_dispatcher`, else a host pool for this run only.
        observer: Follows the run, or None.
        params: Values of `${param.NAME}`; texts become values of the types that the spec declares.
        submission_id: Id under which stages are reused; None: the id of the workflow run.
        task_ids: Ids of the tasks by stage key; None: made from the submission id.
        base_dir: Directory that relative paths of data and models start from.
        loopback: Whether results may be delivered to this machine.
        submitted: Whether the spec came from others, so that its inputs are confined. No spec, record or parameter says
            so: it is true in the flow that submissions run in (`run_workflow`), and nowhere else.
        strict: Whether warnings of executors, such as a model that will hardly fit, end the stage.
        watch: Watches task records and tasks of other submissions; None: the manifests below `root`.
        shown: Parameters that Prefect shows for a run made from a plan; the bridge reads the spec there.
    """

    settings: MlocSettings = field(default_factory=get_settings)
    results_root: Path | None = None
    dispatcher: StageDispatcher | None = None
    observer: RunObserver | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    submission_id: str | None = None
    task_ids: Mapping[str, str] | None = None
    base_dir: Path = field(default_factory=Path.cwd)
    loopback: bool = True
    submitted: bool = False
    strict: bool = False
    watch: TaskWatch | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Absolute results root."""
        return (self.results_root or self.settings.results_root).expanduser().absolute()

    @property
    def rules(self) -> SpecRules:
        """What the spec may read and run."""
        here = self.base_dir
        return SpecRules(settings=self.settings, submitted=self.submitted, results=self.root, base=here, working=here)

    @property
    def task_watch(self) -> TaskWatch:
        """The given watch, or the default."""
        return self.watch or ManifestWatch(self.root)

    def allowed_hosts(self, api_url: str | None) -> AllowedHosts:
        """Return the hosts that the run may call; never Prefect's API, at `api_url` if that is known."""
        return AllowedHosts.of(self.settings, loopback=self.loopback, api_url=api_url)

    def ids(self, plan: WorkflowPlan, flow_run_id: str) -> dict[str, str]:
        """Return the task id of each stage key: the given one, else uuid5(submission or root flow run, key)."""
        space = _namespace(self.submission_id or flow_run_id)
        given = self.task_ids or {}
        return {s.key: given.get(s.key) or str(uuid5(space, s.key)) for s in plan.stages}


def _namespace(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return uuid5(NAMESPACE_URL, f"mloc-submission:{text}")
