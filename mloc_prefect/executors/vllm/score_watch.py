"""Finds the rows of a vLLM engine whose scores are NaN: vLLM counts them, but its answers do not tell."""

from __future__ import annotations

from typing import Any


def watch_scores(engine: Any) -> set[str]:
    """Return a set that receives the names of the requests whose scores are NaN, before `step` returns their tokens.

    Args:
        engine: An `LLMEngine`, started with `VLLM_COMPUTE_NANS_IN_LOGITS`.
    """
    broken: set[str] = set()
    core, processor = engine.engine_core, engine.output_processor
    get_output = core.get_output

    def watched() -> Any:
        outputs = get_output()
        for output in getattr(outputs, "outputs", ()):
            if getattr(output, "num_nans_in_logits", 0):
                broken.add(_name(processor, output.request_id))
        return outputs

    core.get_output = watched
    return broken


def _name(processor: Any, request_id: str) -> str:
    """Return the name that a request was added with; the engine has its own, and one for each of several answers."""
    state = processor.request_states.get(request_id)
    return request_id if state is None else str((state.parent_req or state).external_req_id)
