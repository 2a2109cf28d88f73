"""Commands that call an MLOC endpoint over HTTP: submit, status, list, watch, logs, results, cancel, workers.

All of them use `mloc_prefect.client`. They must not read stores, results roots or Prefect; only `worker_lookup` asks
Prefect if no endpoint is configured.

Modules:
    `task_commands`: the commands.
    `worker_lookup`: the workers, from the endpoint or from Prefect.
    `spec_upload`: a spec, checked and ready to submit.
    `task_watching`: tasks in the display of `mloc run`.
    `record_tables`: records as lines and tables.
"""
