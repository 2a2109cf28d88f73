"""Entry point of `python -m mloc_prefect.server`."""

import sys

from mloc_prefect.server.main import main

sys.exit(main())
