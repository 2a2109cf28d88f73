"""SmolLM2 and the embedding model MiniLM for tests: prepared once per checkout."""

from __future__ import annotations

from pathlib import Path

from mloc_prefect.artifacts.prepared_models import prepare
from mloc_prefect.settings import MlocSettings

_HOME = Path(__file__).parents[2] / ".cache" / "mloc-home"


def prepared_home(*, embeddings: bool = False) -> Path:
    """Return a state directory with SmolLM2 (the first call takes half a minute).

    Tests with their own `MLOC_HOME` name its `mirrors.yaml` in `MLOC_MIRRORS`. Do not write to it.

    Args:
        embeddings: With MiniLM, too.
    """
    for name in ("smollm2", "minilm") if embeddings else ("smollm2",):
        prepare(name, MlocSettings(home=_HOME, mirrors=None))
    return _HOME


def embedding_mirrors() -> Path:
    """Return a mirrors file that has MiniLM, for tests that need no other model."""
    prepare("minilm", MlocSettings(home=_HOME, mirrors=None))
    return _HOME / "mirrors.yaml"
