"""Child processes, and what every program of ours needs to know about processes, files and ports of its machine.

It starts processes that end with their owner, finds those that a dead owner left behind, and keeps the small files in
which programs find each other. It must not know what the processes do: nothing of Prefect, Redis, executors or specs.
All of it needs the standard library only, since hosts and the local runtime start with it.

Modules:

* `child`: processes and servers on a lifeline: launch, ready, stop, log rotation
* `supervised_child`: the owner's side of a command below a supervisor
* `supervisor`: the script between an owner and a command, which ends the command's whole family
* `marks`: environment marks that name the owner of a process
* `proc`: facts about single processes, read from `/proc`
* `process_memory`: memory of processes and of the machine
* `run_dir`: the directory of sockets, locks and logs
* `start_watch`: whether a process that starts makes progress
* `lock_file`: locks that last as long as their process, and name it
* `state_file`: JSON files in which a program says where it can be found
* `atomic_file`: files that appear whole or not at all
* `regular_file`: opens regular files only, and only those inside a folder
* `log_tail`: the end of a log
* `free_port`: sockets that listen, and ports that nothing listens on
* `proxies`: proxies of the environment, and calls that go past them
* `port_ranges`: lists of ports as settings have them
* `exposure`: which addresses other machines reach, and what must not stand open beside them
* `notify`: readiness of long-running commands, as systemd has it
* `backoff`: waits between tries that fail
* `kept_watch`: loops that start again after an error that they did not foresee
"""
