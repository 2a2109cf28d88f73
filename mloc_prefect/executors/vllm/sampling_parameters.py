"""Builds vLLM's `SamplingParams` from `VllmSampling`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from mloc_prefect.executors.vllm.vllm_sampling import VllmSampling


def refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions with which vLLM refuses a row or its parameters; its own are not `ValueError`s."""
    from vllm.exceptions import VLLMClientError

    return (VLLMClientError, ValueError, TypeError, NotImplementedError)


def parameters_of(sampling: VllmSampling, index: int, limit: int) -> Any:
    """Return the `SamplingParams` of row `index`, which may generate `limit` tokens.

    Raises:
        UserError: vLLM refuses the values.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    arguments = sampling.arguments(index, limit)
    try:
        if sampling.structure is not None:
            kind, rule = sampling.structure
            arguments["structured_outputs"] = StructuredOutputsParams(**{kind: json.loads(rule)})
        return SamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY, skip_clone=True)
    except refusals() as error:
        raise UserError(f"spec.inference: {one_line(error)}") from None
