"""A daemon of an earlier version restarts its server with `python -m mloc_prefect.orchestrate.server_main OPTIONS`."""

from mloc_prefect.prefect_ext.server.main import main

if __name__ == "__main__":
    main()
