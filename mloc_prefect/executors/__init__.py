"""Executors: the code that runs tasks. Only host processes load it, by import path.

An executor talks to its host through `ExecutionContext` alone. It must not know Prefect, plans (except graph templates
and shard ranges) or the store; torch and the other heavy libraries are imported in this package only, inside functions
or in modules that such functions import.

* `agent`: LLM agents, with pydantic-ai.
* `chat`: chats: rows of messages, and their chat template.
* `common`: what engines share: reading a spec, prompts, adapters, sampling, rows and results.
* `echo`: the executor of `echo`, the smallest complete example.
* `rag`: retrieval from Qdrant, and the documents that fill a collection.
* `sources`: finds and reads models and data sets.
* `training`: the executor of sft, lora_sft, dpo, ppo and grpo, with TRL.
* `transformers`: inference with Hugging Face transformers.
* `vllm`: inference with vLLM.
"""
