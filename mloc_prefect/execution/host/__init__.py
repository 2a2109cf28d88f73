"""What runs in a host process: one executor, kept warm, its socket, its tasks and their progress.

It takes requests on a unix socket, runs them on worker threads and sends back events and a result. It must not know its
owner, Prefect or Redis, and needs the standard library only, since it runs in the environment of its executor.

Modules:

* `main`: start and end of the process
* `host_server`: the socket: requests, questions, clients that leave, idle time
* `task_runner`: the queue of tasks and the threads that run them
* `loading`: the executor class from its string path
* `progress_meter`: rates and remaining time of an attempt
"""
