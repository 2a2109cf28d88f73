"""Shows people how a run goes: artifacts in Prefect's UI, and the log of each stage.

Nothing here may fail a run: an error of a display is a line in the log. It must not know how attempts are run.

Modules:

* `run_artifacts`: plan, result and progress of a run as Prefect artifacts
* `stage_log`: `logs/stage.log` of a task
* `training_report`: facts and curves of a finished training as Prefect artifacts
"""
