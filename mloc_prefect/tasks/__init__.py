"""Task types: what users may write in a spec, one module per type, and which executor runs it.

The package knows nothing of plans, files, processes or Prefect, and it loads no executor code. A task type may be named
only here; other packages use the fields of `TaskType`.

* `agent`, `dpo`, `echo`, `grpo`, `inference`, `lora_sft`, `ppo`, `rag`, `sft`: one task type each.
* `base`: `TaskType`, `ExecutorRef` and the base classes of models.
* `chat_messages`: chat messages as rows, and what is wrong with them.
* `checks`: validates one spec against its model.
* `common`: fields that all task types share.
* `fields`: types of single fields.
* `keys`: the names that each mapping of a spec may hold.
* `passage_filters`: which passages a search may find.
* `postprocess`: what planning and executors share about exports.
* `prompts`: `spec.data` of task types that answer prompts.
* `registry`: all task types by name.
* `response_schema`: checks `inference.response_schema`.
* `third_party`: task types of other distributions.
* `training`: what the training task types share.
"""
