"""The routes of the endpoint, one module per subject.

A route parses its parameters and shapes the answer. It must not hold logic that another route or a test needs without
HTTP; that is in the other modules of `server`.

Modules:
    `task_routes`: submit, check, list, show and cancel tasks.
    `result_routes`: post and fetch results.
    `file_routes`: upload and download files.
    `log_routes`: read logs.
    `event_routes`: subscribe to messages.
    `worker_routes`: list, show and disable workers.
    `health_routes`: `/healthz`, `/readyz`, `/metrics`.
"""
