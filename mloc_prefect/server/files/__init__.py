"""Upload and download of task files over HTTP.

A file appears under its name only when it is complete and on disk. Nothing here may know task records or the store: it
gets the directory of a task.

Modules:
    `task_files`: where the files of a task are, and which names are allowed.
    `multipart_upload`: uploads of a whole file.
    `resumable_upload`: uploads that continue after an interruption.
    `file_response`: downloads, with ranges and entity tags.
    `digests`: SHA-256 of files, stored next to them.
"""
