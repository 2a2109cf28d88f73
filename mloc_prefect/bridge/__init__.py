"""The bridge: keeps MLOC task records and messages in step with the flow runs in Prefect.

It reads Prefect's events and API, moves records in the store, and makes runs of accepted submissions. It must not know
HTTP routes, commands, or how a worker runs a stage.

* `main`: the bridge as a service: everything that the active bridge does
* `leader`: the lease that makes one bridge the active one
* `journal_consumer`: reads the journal of accepted submissions and cancellations
* `journal_handlers`: handles one entry of the journal
* `event_sources`: events of Prefect, from its Redis stream or its websocket
* `event_consumer`: applies events in order and acknowledges them
* `projector`: moves records by events and by what the API shows
* `assignments`: which worker has which tasks
* `shard_records`: records of the shards of a task
* `prefect_runs`: reads flow runs and kept events from Prefect's API
* `memory_runs`: the twins of runs and events in memory
* `reconcile`: compares records with the API and repairs what no event reported
* `rebuild`: makes missing records from Prefect's tags and parameters
* `worker_metrics`: counts what workers report
* `local_run`: records of a run of `mloc run`
"""
