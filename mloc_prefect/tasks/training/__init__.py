"""Fields, defaults and checks that all training task types share.

The tables are read by planning and by the executors, so that both apply the same rules. They know TRL only by the names
of its fields, and import nothing beyond the standard library.

* `mini_batches`: how PPO divides its answers into mini-batches.
* `option_limits`: bounds of TRL's options, and options that exclude each other.
* `rewards`: how answers are scored in ppo and grpo.
* `training_checks`: problems that planning reports.
* `training_spec`: models of the shared fields.
* `training_table`: what each field becomes in TRL.
* `trl_fields`: fields of TRL's config classes in its newest version (generated).
* `trl_fields_ppo`: the same of the last version with PPO (generated).
"""
