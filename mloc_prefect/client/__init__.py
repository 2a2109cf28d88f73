"""The Python client of an MLOC endpoint: `MlocClient`, and `AsyncMlocClient` with the same methods.

It works with any endpoint that has MLOC's routes, also with the original orchestrator where it has the route. What a
method asks is written once, as steps that both clients carry out. The package must not read stores, results roots or
Prefect, and shows the token nowhere.

Modules:
    `sync_client`, `async_client`: the two clients.
    `client_calls`: the steps of their methods.
    `client_steps`: what a step may be.
    `endpoint_address`: where an endpoint is, and with which token it is called.
    `endpoint_replies`: responses as values and as errors.
    `errors`: the errors.
    `task_lookup`: the tasks that an id or its first characters mean.
    `saved_files`: which files of a task are saved, and their check.
    `stream_lines`: lines of logs and messages as they arrive.
"""
