"""Finds weights that are not finite. Imports torch inside functions only."""

from __future__ import annotations

from typing import Any


def broken_weight(model: Any) -> str | None:
    """Return the name of the first weight with NaN or an infinite value, None when all are finite.

    In a group of processes that divide the weights, each looks at its own part.
    """
    import torch

    with torch.inference_mode():
        for name, weight in model.named_parameters():
            part = weight.to_local() if hasattr(weight, "to_local") else weight
            if not part.is_floating_point() or not part.numel():
                continue
            lowest, highest = torch.aminmax(part.detach())
            if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
                return str(name)
    return None


def diverged_text(weight: str, step: int, first: int | None, rate: object) -> str:
    """Return the message about a training whose weights are not finite.

    Args:
        weight: Name of the weight.
        step: The last step.
        first: The first logged step whose loss or gradients were not finite, or None.
        rate: `training.learning_rate`.
    """
    since = f", loss or gradients are not since step {first}" if first is not None else ""
    return (
        f"the training diverged: weight '{weight}' is not finite at step {step}{since}; the model is not usable and "
        f"not saved. Lower spec.training.learning_rate ({rate}), or set max_grad_norm"
    )
