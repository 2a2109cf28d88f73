"""Runs attempts at MLOC workers: workers that speak the original MLOC protocol over Redis. [protocol 2.4, 3].

It chooses a worker, sends the task, follows the worker's messages and collects its result. It must not know workers of
this package, Prefect's work pools, or how a stage is retried.

* `mloc_dispatcher`: runs attempts at MLOC workers; a `StageDispatcher`
* `worker_session`: one worker that has one task: lease, message, end
* `subscription`: one subscription for all tasks of a process
* `messages`: the messages between dispatcher and workers
* `worker_list`: the MLOC workers in the registry
* `worker_selection`: which worker gets a task
* `result_location`: where a worker leaves its result
* `row_ranges`: shards of data sets as row ranges
"""
