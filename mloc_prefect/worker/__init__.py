"""The `mloc-gpu` worker: claims runs of a Prefect work pool, and runs our flows in its own loop next to warm executors.

It joins what lies below: the machine's hardware and leases, the other workers, the flow of a workflow. It must not know
the HTTP endpoint, the command line or the bridge: it is one process of a site and does not care what else runs there.

* `main` runs one worker until it is stopped.
* `worker` is the worker type, a subclass of Prefect's process worker.
* `job_configuration` is how one run is started.
* `worker_services` is all of a worker besides Prefect's polling and process runs, started and ended in order.
* `machine` has the inventory, the lease book and the executor hosts of this machine.
* `local_placement` runs attempts on this machine, with a lease and a slot.
* `placement` chooses where an attempt runs: here, on the pool, or at an MLOC worker.
* `work_pool_dispatcher` sends an attempt to the pool as a child run.
* `in_loop_runs` are runs of our own flows in the worker's loop.
* `own_runs` decides which runs may start: our own, others only if the operator allows it.
* `user_runs` leases GPUs for runs of users' own flows.
* `event_listener` receives state changes of runs and wakes the polling.
* `signals` ends a worker in steps: drain, stop, kill.
* `claims` decides which scheduled runs a worker takes.
"""
