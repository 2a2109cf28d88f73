"""`lora_sft`: supervised fine-tuning of LoRA adapters with TRL and PEFT. [protocol 4.4]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.executors.sft import SftRecipe

if TYPE_CHECKING:
    from mloc_prefect.tasks.training_table import Kind


class LoraSftRecipe(SftRecipe):
    """As sft; that adapters are trained is decided where the model is loaded."""

    kind: Kind = "lora_sft"
    title = "LoRA SFT"


RECIPE = LoraSftRecipe()
