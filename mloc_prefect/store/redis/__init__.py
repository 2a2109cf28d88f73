"""The stores in Redis (>= 6.2) or Valkey, in the keys of the MLOC protocol and keys `mloc:*` of our own.

Every change that must be atomic is one Lua script, and every error is a `StoreError` that names the server. It must not
know its twin in memory.

* `redis_client`: connections, errors, scripts
* `scripts`: the Lua scripts
* `script_batch`: sends concurrent script calls together
* `codec`: records and submissions as hashes
* `task_store`: task records and submissions
* `worker_registry`: workers and heartbeats
* `journal`: accepted submissions and cancellations
* `publisher`: messages over channels
* `service_leases`: leases by name
"""
