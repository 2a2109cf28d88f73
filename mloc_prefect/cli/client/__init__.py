"""Commands that talk to an MLOC endpoint over HTTP: submit, status, list, watch, logs, results, cancel, workers."""
