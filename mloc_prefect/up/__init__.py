"""`mloc up`: Valkey, Prefect server, endpoint, bridge and worker as child processes of one command."""
