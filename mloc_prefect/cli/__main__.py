"""`python -m mloc_prefect.cli`: the `mloc` command of this very interpreter, as `mloc up` starts its parts."""

from mloc_prefect.cli import main

main()
