"""The version of this package, and where it is installed. Standard library only; every layer may use it."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

PACKAGE_DIR = Path(__file__).parent
"""Directory of the package `mloc_prefect` itself."""
