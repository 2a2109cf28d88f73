"""Commands that call an MLOC endpoint over HTTP: submit, status, list, watch, logs, results, cancel, workers.

They work with any endpoint that has MLOC's routes, also with the original orchestrator where it has the route. They
must not read stores, results roots or Prefect; only `worker_lookup` asks Prefect if no endpoint is configured.

Modules:
    `task_commands`: the commands.
    `endpoint_client`: requests to one endpoint, and its errors.
    `task_lookup`: the tasks that an id or its first characters mean.
    `worker_lookup`: the workers, from the endpoint or from Prefect.
    `spec_upload`: a spec, checked and ready to submit.
    `task_watching`: tasks in the display of `mloc run`.
    `log_stream`: log lines of a task.
    `result_files`: results saved to disk.
    `record_tables`: records as lines and tables.
"""
