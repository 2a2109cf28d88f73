"""Claims: which scheduled runs a worker takes, and what it knows of claims that have not become runs yet.

A claim holds the lease that its run needs. This package must not know how a run is executed: it hands claims to the
worker, which gives back the leases of those that do not run.

* `claim_loop` chooses runs in each poll.
* `scheduled_runs` reads what is scheduled in a queue, by the clock of the server.
* `lease_waiters` wait at the lease book for queues whose first run has no room yet.
* `pending` knows claims that have not begun, and claims without an answer.
* `left_runs` knows claimed runs that have left this worker without a known end, and recovers them.
"""
