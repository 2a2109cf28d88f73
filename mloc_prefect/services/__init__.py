"""Programs that run beside ours on one machine: Valkey, the local runtime, and `mloc up`, which runs all of them.

They are started, watched and ended here, with the ports, passwords and logs that they need. What the parts do inside is
none of this package's business: it starts endpoint, bridge and worker as commands, and imports none of them.

Modules and packages:

* `local_runtime`: the daemon of one `MLOC_HOME` that keeps a Prefect server and warm hosts for `mloc run`
* `profile`: the description of the parts when each runs more than once, and what is generated from it
* `up`: `mloc up`: all services as one command
* `valkey`: the embedded Valkey as its owner sees it
* `valkey_main`: the process between that owner and the Valkey server
* `secret_files`: passwords and tokens in files that only their user reads
"""
