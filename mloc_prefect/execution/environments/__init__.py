"""Python environments of executors that cannot share one with Prefect, such as vLLM's.

An environment is built once below `MLOC_HOME` from a recipe with pinned versions. This package must not know task types
or executors, and never imports the libraries of an environment: it reads their metadata.

* `catalog`: the recipes, where environments are, and which interpreter an executor gets.
* `builder`: builds an environment with pip, or with uv on request.
* `torch_source`: which build of torch is fetched, and how large it is.
* `inspection`: finds what is wrong with an environment without importing its libraries.
"""
