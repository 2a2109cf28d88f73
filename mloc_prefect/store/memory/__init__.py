"""The twins of the Redis stores in memory, for tests and for one process: no files, the same rules.

Each module is named like the one in `store.redis` whose interface it implements. It must not know Redis.

* `task_store`: task records and submissions
* `worker_registry`: workers and heartbeats
* `journal`: accepted submissions and cancellations
* `publisher`: messages to subscribers
* `service_leases`: leases by name
"""
