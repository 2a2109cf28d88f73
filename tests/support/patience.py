"""How long tests wait for a process to start; it costs nothing where the machine is quick."""

START_SECONDS = 180.0
"""A Prefect server needs three seconds of a core, which neighbours may leave it a tenth of."""

FACT_SECONDS = 180.0
"""A run needs a second or two, but a stock Prefect server may be locked for a minute, the patience of its SQLite, when
two of its writers meet; ours begins its transactions so that they do not."""

STOP_SECONDS = 120.0
"""A stock Prefect server ends only after the requests and services in hand, which may wait for its SQLite a minute."""
