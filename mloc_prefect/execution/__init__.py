"""Execution of single attempts in child processes ("hosts") that keep a model loaded.

Defines what an executor is, how an attempt is described to it, and how results and failures come back. It must not
know Prefect, the store or any task type, and what a host imports of it needs the standard library only.

* `context`: what an executor sees of its surroundings while it runs one attempt.
* `environments`: executor environments: creating, checking and finding them.
* `executor`: the `Executor` protocol.
* `failures`: converts exceptions of an executor to `ExecutionFailure`.
* `host`: the code that runs inside the child process.
* `host_types`: `HostSpec`, `Host`, `HostExit` and the protocol of host owners.
* `hosts`: the code that starts, supervises and uses hosts from the owner's side.
* `leased_devices`: reads the device lease of this process from its environment.
* `line_file`: files of JSON lines that survive a crash.
* `protocol`: requests, events and results that cross the process boundary.
* `result_file`: writes the result object of an attempt.
* `row_journal`: the journal of finished rows that retries reuse.
* `wire`: the line protocol of a host's socket.
"""
