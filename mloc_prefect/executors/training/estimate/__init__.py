"""Estimates the memory that a training needs before a model is loaded.

Warns about, or refuses, trainings that will not fit. Knows shapes and options only: no weights, no trainer.

* `memory_estimate`: the estimate, and the check against the memory of the device.
* `optimizer_states`: bytes of optimizer states, and how they are sharded.
"""
