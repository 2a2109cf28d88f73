"""SmolLM2 for tests: prepared once for each checkout."""

from __future__ import annotations

from pathlib import Path

from mloc_prefect.artifacts.models import prepare
from mloc_prefect.settings import MlocSettings

_HOME = Path(__file__).parents[2] / ".cache" / "mloc-home"


def prepared_home() -> Path:
    """Return a state directory in which SmolLM2 is prepared (the first call takes half a minute).

    Tests that keep their own `MLOC_HOME` name its `mirrors.yaml` in `MLOC_MIRRORS`. Do not write to it.
    """
    prepare("smollm2", MlocSettings(home=_HOME, mirrors=None))
    return _HOME
