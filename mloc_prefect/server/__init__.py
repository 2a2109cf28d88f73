"""The HTTP endpoint: MLOC's routes, and what it adds to them. Started by `python -m mloc_prefect.server`."""
