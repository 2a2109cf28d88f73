"""What the executors share: everything around the engine itself.

These modules read a spec, prepare prompts and adapters, choose device and dtype, and build results. They know no
single engine and import nothing from the packages of the engines.

* `adapters`: LoRA adapters that inference tasks name.
* `checkpoint_source`: weights from `checkpoint.load`.
* `convert_gguf`: a script that unpacks a GGUF file.
* `cpu_dtype`: whether this CPU computes well in 16 bits.
* `gpu_memory`: the leased share of GPU memory, and freeing it.
* `inference_task`: the input and the result of an inference task, the same for every engine.
* `jsonl_export`: `postprocess.jsonl_export`.
* `load_errors`: converts errors of model loaders to mistakes of the user.
* `lora_merge`: combines several LoRA adapters into one.
* `model_options`: how a model is loaded: device, dtype, quantization.
* `prompt_data`: prompts from `spec.data`.
* `rendering`: from a prompt to the tokens that the model reads.
* `result_items`: items and usage of a result.
* `row_recorder`: journal, failures and counts of the rows of one attempt.
* `sampling`: `spec.inference` as sampling parameters.
* `shard_rows`: the rows of a shard.
* `spec_reader`: typed access to a resolved spec.
* `threads`: CPU threads of an executor.
* `tokenizing`: tokenizes prompts in batches and orders rows by length.
* `weights_progress`: progress of loading weights with transformers.
"""
