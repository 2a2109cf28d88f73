"""`mloc selftest`: runs the work of this product on this machine and measures it, most of all on machines with GPUs.

Each check runs specs with `mloc run` as a user does, in an `MLOC_HOME` of its own, and reads results, `mloc ps` and the
memory of the cards. It must not know how executors work.

* `trial`: the `MLOC_HOME` of the checks, runs of specs, what is warm, and the memory of the cards
* `check_runner`: what a check is, its result, and the order of all checks
* `trial_specs`: the specs that checks run
* `inference_trials`: vLLM and transformers: start, speed, sleep, packing, adapters, cancel, kill, two cards
* `training_trials`: steps, checkpoint and resume, GRPO, two cards
"""
