"""The HTTP endpoint: MLOC's routes and the additional ones of this project.

A request is checked, planned and stored; the bridge does the rest. The endpoint must not call Prefect or run tasks: it
knows specs and plans, the store, and the results root.

Modules:
    `application`: the ASGI application: routes, error answers, lifetime.
    `main`: serving it; `__main__` is `python -m mloc_prefect.server`.
    `bind`: the address to listen on, and whether that is allowed.
    `connections`: limits of time and number of connections.
    `auth`: the bearer token, and protection without one.
    `dependencies`: what routes get: stores, settings, feeds.
    `routes`: the routes, one module per subject.
    `files`: upload and download of task files.
    `streams`: server-sent events and logs.
    `request_body`: reading and parsing bodies.
    `responses`: JSON answers and error answers.
    `spec_errors`: the 400 answer to an invalid spec.
    `submission`: submitting a spec.
    `cancellation`: cancelling tasks.
    `posted_results`: results that clients post and fetch.
    `record_steps`: moving a record that others may move, too.
    `worker_cache`: the live workers, and why a stage would wait.
    `metrics_snapshot`: the JSON of `/metrics`.
    `prometheus`: the same as Prometheus text.
    `counters`: counts of answered requests.
    `examples`: examples of the OpenAPI document.
"""
