"""`python -m mloc_prefect.cli`: the `mloc` command of this interpreter; `mloc up` starts its parts this way."""

from mloc_prefect.cli import main

main()
