"""Training with TRL: sft, lora_sft, dpo, ppo and grpo.

One executor class runs all of them; what a task type adds is its recipe. Knows nothing of inference engines. Requests
name the class as `mloc_prefect.executors.training:TrainingExecutor`, which stored plans contain.

* `column_types`: checks that each column has one type.
* `demo_data`: rows for specs without data.
* `dpo`, `grpo`, `lora_sft`, `ppo`, `sft`: the recipes.
* `estimate`: the memory that a training needs.
* `guards`: what the libraries refuse too late, or let pass.
* `metrics_file`: metrics and curves.
* `ppo_rating`: rewards in TRL's PPO trainer.
* `ranks`: one training in several processes.
* `recipe`: `Recipe` and `TrainingJob`.
* `rewards`: scores answers in ppo and grpo.
* `rollouts`: what ppo and grpo share.
* `row_lengths`: token counts of rows, and what a limit cuts.
* `saving`: weights, archive and result.
* `task_checkpoints`: checkpoints that later attempts resume from.
* `trainer_arguments`: arguments of TRL's config classes.
* `trainer_callbacks`: progress, checkpoints and cancellation inside a trainer.
* `training_executor`: the executor class.
* `training_model`: tokenizer and model.
* `training_rows`: the rows to learn from.
* `training_run`: the steps of one training.
"""

from mloc_prefect.executors.training.training_executor import TrainingExecutor

__all__ = ["TrainingExecutor"]
