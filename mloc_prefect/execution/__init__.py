"""Running executors in child processes: protocol, hosts, client, and the journal of rows."""
