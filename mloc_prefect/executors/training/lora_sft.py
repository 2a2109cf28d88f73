"""`lora_sft`: supervised fine-tuning of LoRA adapters with TRL and PEFT [protocol 4.4]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.executors.training.sft import SftRecipe

if TYPE_CHECKING:
    from mloc_prefect.tasks.training.training_table import Kind


class LoraSftRecipe(SftRecipe):
    """Like sft; `training_model` decides that adapters are trained."""

    kind: Kind = "lora_sft"
    title = "LoRA SFT"


RECIPE = LoraSftRecipe()
