"""The cluster: which workers there are, which of them were lost, and what becomes of the runs of those.

Workers find each other through Prefect alone, so that no Redis is needed; each process decides by its own clock. This
package must not know how a worker claims or executes runs: it sees workers from outside, and any process may use it.

* `worker_card` is what a worker says of itself, small enough for a Prefect Variable.
* `membership` stores cards and locks in Prefect Variables.
* `cluster_view` is the workers as one process sees them: who is live, who is lost, where a request would fit.
* `identity` is the id of a worker and which process it is.
* `heartbeat` publishes a worker's card from a thread of its own.
* `reaper` takes over from lost workers, and from an earlier process of the same worker.
* `run_recovery` decides what becomes of each run of a worker that was lost or stopped.
* `run_sweep` finds runs of processes that have no card, which no reaper comes for.
* `orphans` are runs of users' own flows whose worker was lost.
* `deployments` are the pool and the deployments through which our runs go.
* `requirement_queues` are work queues by what their runs need.
* `mloc_registration` registers a worker for tools of MLOC, in Redis.
* `results_proof`: whether a worker sees the results root of its site
* `worker_artifact` shows the workers in Prefect's UI.
"""
