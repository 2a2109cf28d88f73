"""How PPO divides its answers into mini-batches: one rule for planning and executor.

Standard library only, because executor environments may lack our dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.tasks.training.training_table import DEFAULTS, SHARED_DEFAULTS

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
"""Fields of `training` that determine the division."""


class UnevenBatchesError(ValueError):
    """The sizes do not divide.

    Attributes:
        field: The field among `SIZES` to change.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def batches_of(given: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the answers per batch, the mini-batches per batch, and the mini-batches per optimizer step.

    All are per process. As in MLOC, `batch_size` answers are generated, then learned from in mini-batches;
    `gradient_accumulation_steps` mini-batches make one optimizer step. A `mini_batch_size` that does not divide is
    replaced by the next smaller one that does, see `replaced_mini_batch`: TRL itself reads only the number of
    mini-batches.

    Args:
        given: The fields among `SIZES` that the spec sets.

    Raises:
        UnevenBatchesError: They do not divide.
    """
    values = {**SHARED_DEFAULTS, **DEFAULTS["ppo"], **given}
    if replaced := replaced_mini_batch(given):
        values["mini_batch_size"] = replaced[1]
    steps, (batch, name) = values["gradient_accumulation_steps"], _batch(values, given)
    cut = "num_mini_batches" if "num_mini_batches" in given else "mini_batch_size"
    size = values[cut] * steps
    if batch % size:
        whole = f"{name} {batch}" if name == "batch_size" else f"{name} x gradient_accumulation_steps = {batch}"
        field = next(f for f in (cut, "gradient_accumulation_steps", name) if f in given)
        message = f"{whole} is not a multiple of {cut} x gradient_accumulation_steps = {size}"
        raise UnevenBatchesError(field, message)
    return batch, size if cut == "num_mini_batches" else batch // values[cut], steps


def replaced_mini_batch(given: Mapping[str, int]) -> tuple[int, int, int] | None:
    """Return the wanted `mini_batch_size`, the one that is used instead, and the answers that it does not divide.

    Returns:
        None when it divides, when `num_mini_batches` counts instead, or when no other size divides either.
    """
    values = {**SHARED_DEFAULTS, **DEFAULTS["ppo"], **given}
    if "num_mini_batches" in given or "mini_batch_size" not in given:
        return None
    (batch, _), steps, wanted = _batch(values, given), values["gradient_accumulation_steps"], values["mini_batch_size"]
    if batch % (wanted * steps) == 0 or batch % steps:
        return None
    used = next(size for size in range(min(wanted, batch // steps), 0, -1) if batch % (size * steps) == 0)
    return wanted, used, batch


def replaced_text(replaced: tuple[int, int, int]) -> str:
    """Return what `replaced_mini_batch` found, as text."""
    wanted, used, batch = replaced
    return f"mini_batch_size {wanted} does not divide {batch} answers; mini-batches of {used} are used"


def _batch(values: Mapping[str, int], given: Mapping[str, int]) -> tuple[int, str]:
    """Return the answers of a batch, and the field that they come from."""
    if "per_device_train_batch_size" in given and "batch_size" not in given:  # the rows of one forward pass
        rows = given["per_device_train_batch_size"]
        return rows * values["gradient_accumulation_steps"], "per_device_train_batch_size"
    return values["batch_size"], "batch_size"
