"""The local runtime: a daemon for each `MLOC_HOME` that keeps a Prefect server and warm hosts for `mloc run`.

It starts on demand, outlives the command that started it, and leaves when it has been idle. It must not know Prefect's
libraries or settings: `daemon` and `runtime_wire` need the standard library only, so that it starts fast.

Modules:

* `daemon`: the daemon and its requests
* `runtime_client`: starts the daemon on demand, and talks to it
* `runtime_wire`: files, configuration and messages that both agree on
"""
