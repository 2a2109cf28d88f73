"""Streams over HTTP: messages of the channels and logs of tasks.

A stream ends with its client, its source or the process. Nothing here knows tokens or records: routes choose what to
stream.

Modules:
    `sse`: the format of server-sent events, and their keep-alive.
    `message_feed`: the messages of the channels, for any number of readers.
    `task_log`: the log of a task, from any position, as text or as events.
"""
