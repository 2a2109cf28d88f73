"""Divides one attempt at a task into shards, which run at the same time, and merges their results.

It must not know where shards run: that is decided by the dispatcher that it is given. Ranges of rows come from
`plan.shard_ranges`, and the attempts at each shard from `flow.attempt_loop`.

Modules:

* `shard_merge`: writes the result of the whole task from those of its shards
* `shard_plan`: how a task is divided, decided once and stored
* `shard_progress`: the progress of the whole task
* `shard_runs`: a Prefect run for each shard, only for display and for cancellation
* `sharding_dispatcher`: divides attempts, and runs their shards
"""
