"""How PPO cuts its answers into mini-batches: one rule for planning and executor, so that they cannot differ.

Standard library only: executor environments need not have our dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.tasks.training_table import DEFAULTS, SHARED_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZES = frozenset(
    {
        "batch_size",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "mini_batch_size",
        "num_mini_batches",
    }
)
"""Fields of `training` that say how."""


class UnevenBatchesError(ValueError):
    """Sizes that do not divide.

    Attributes:
        field: The one of `SIZES` to change.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def batches_of(given: Mapping[str, int]) -> tuple[int, int, int]:
    """Return answers of one batch, mini-batches that it is cut into, and how many of these one optimiser step takes.

    All are for one process. As in MLOC, `batch_size` answers are given, then learnt from in mini-batches;
    `gradient_accumulation_steps` of them make one step of the optimiser.

    Args:
        given: Those of `SIZES` that the spec sets.

    Raises:
        UnevenBatchesError: They do not divide.
    """
    said = {**SHARED_DEFAULTS, **DEFAULTS["ppo"], **given}
    steps, batch, name = said["gradient_accumulation_steps"], said["batch_size"], "batch_size"
    if "per_device_train_batch_size" in given and "batch_size" not in given:  # what goes through the model at once
        batch, name = given["per_device_train_batch_size"] * steps, "per_device_train_batch_size"
    cut = "num_mini_batches" if "num_mini_batches" in given else "mini_batch_size"
    size = said[cut] * steps
    if batch % size:
        whole = f"{name} {batch}" if name == "batch_size" else f"{name} x gradient_accumulation_steps = {batch}"
        field = next(f for f in (cut, "gradient_accumulation_steps", name) if f in given)
        message = f"{whole} is not a multiple of {cut} x gradient_accumulation_steps = {size}"
        raise UnevenBatchesError(field, message)
    return batch, size if cut == "num_mini_batches" else batch // said[cut], steps
