"""The MLOC face of runs: task records, worker registry and messages, each a Protocol with a twin in memory."""
