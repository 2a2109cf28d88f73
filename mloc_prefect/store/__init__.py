"""The store of task records, workers, messages and the journal: interfaces, rules, and two implementations.

Each interface has an implementation in Redis and a twin in memory. It must not know Prefect, HTTP, or where the changes
of a record come from.

* `interfaces`: the protocols of all stores, channels and journal entries
* `records`: task records, submissions and workers, as clients see them
* `states`: states of a task and which may follow which
* `transitions`: from an event of a stage to the change of its record and its messages
* `record_factory`: from a plan to the first task records
* `record_views`: what clients see of a record: without secrets, in lists with an outline of a long spec
* `hardware_report`: from the hardware report of a worker to an inventory
* `backends`: opens all stores on one backend
* `task_watch`: waits for the ends of tasks
* `isolation`: keeps one malformed message from blocking the others
* `redis`: the stores in Redis or Valkey
* `memory`: their twins in memory
"""
