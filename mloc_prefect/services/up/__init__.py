"""`mloc up`: Redis, Prefect server, endpoint, bridge and worker as one command, watched and ended together.

It decides ports, secrets and environments, starts the parts in order, and starts a part again when it ends. It must not
know what a part does: each is a command, or an embedded server, that reports when it is ready.

Modules:

* `lifecycle`: claim the directory, start the parts, wait for a signal, stop the parts
* `stack_config`: which parts run, on which ports, in which environment
* `parts`: the parts: commands, and the Prefect server
* `profile_parts`: the parts of `mloc up --profile ha`, each more than once
* `databases`: the databases of Redis, and the embedded Valkey as a part
* `part_supervisor`: starts parts in order, and again when they end
* `up_state`: lock and state file of a running `mloc up`, for other commands
* `addresses`: ports that are free, and the names that other machines use
* `join_env`: the file with which another machine joins
* `log_view`: the lines of all parts on one terminal
* `summary`: what is printed when everything runs
"""
