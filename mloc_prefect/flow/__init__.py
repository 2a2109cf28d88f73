"""Runs a plan as a Prefect flow: a workflow run whose stages are subflows, each a loop of attempts.

It must not know where attempts run in a cluster (`worker`, `cluster`), nor who follows the run (`bridge`, `server`,
`cli`); these packages give it a `StageDispatcher` and a `RunObserver`.

Modules and subpackages:

* `attempt_files`: an attempt as files of its directory, for workers elsewhere
* `attempt_loop`: attempts at a stage or a shard until a result is committed; owns retries
* `build`: makes an ordinary Prefect flow from a plan
* `commit`: delivers, commits and publishes a result
* `coordinator`: starts each stage as a subflow when those above it have ended
* `deployed`: a spec as a Prefect deployment of its own
* `dispatcher`: the `StageDispatcher` protocol and the dispatchers of one machine
* `engine_choice`: which executor runs a stage on a machine, and why
* `fencing`: keeps the process of an earlier start of a run from committing
* `observer`: the protocol of those who follow a run
* `options`: how a plan is run: everything that is not in the plan
* `outcome`: the end of a stage and of a workflow
* `outcome_run`: runs a flow and returns its outcome in addition to its state
* `preflight`: checks before a run that this machine can run it
* `reports`: what people see of a run in Prefect and in `stage.log`
* `run_stage`: the deployed flow of one attempt
* `run_workflow`: the deployed flow of a whole spec
* `shards`: an attempt at a divided task as several tasks
* `spec_parameters`: specs as parameters of flow runs
* `stage_inputs`: resolves and validates a stage before its first attempt
* `stage_runner`: runs one stage to its end
* `worker_loss`: errors of attempts whose worker was lost or stopped
"""
