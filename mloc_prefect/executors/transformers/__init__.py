"""Inference with Hugging Face transformers.

Loads one model and computes batches of rows with it. Knows nothing of vLLM and training. Requests name the class as
`mloc_prefect.executors.transformers:TransformersExecutor`, which stored plans contain.

* `batch_run`: one pass over the missing rows of a task.
* `batching`: batches of rows within a memory budget.
* `decoding`: generates one batch.
* `model_engine`: a loaded model with its tokenizer.
* `transformers_executor`: the executor class.
"""

from mloc_prefect.executors.transformers.transformers_executor import TransformersExecutor

__all__ = ["TransformersExecutor"]
