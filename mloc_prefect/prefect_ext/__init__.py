"""Everything of Prefect that is private, patched or followed closely, so that an upgrade of Prefect is made here.

It knows flow runs, their states, labels and events. It must not know specs, plans, stages' work, workers' hardware or
task records: packages above it import it, and it imports only `errors` of ours (`server` more).

* `requests` sends a request to Prefect's API for which its client has no method.
* `retry` repeats a request until the server answers.
* `client_retries` keeps the waits of Prefect's client short.
* `shared_client` is one client for all runs of an event loop.
* `waiting_requests` makes requests of stock code wait for the server, and lists them.
* `engine` is the one subclass of Prefect's flow engine.
* `run_control` says who owns a run, whether it may report and why it ends.
* `tracking_tasks` link a child run to its parent's run.
* `run_facts` names labels, event names, flow names and messages that are stored with runs.
* `state_reasons` are codes in states, for programs.
* `old_state_messages` reads the messages by which the version before decided.
* `run_follower` follows runs to their ends, by events and polls.
* `cancel_watch` notices runs that somebody cancels.
* `stage_events` sends facts about the attempts of a stage as events.
* `worker_internals` reads and sets private attributes of Prefect's worker.
* `tested_version` warns of a Prefect that is newer than the tested one.
* `server` runs the embedded Prefect server.
"""
