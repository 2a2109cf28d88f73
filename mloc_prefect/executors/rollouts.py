"""What ppo and grpo share: prompts that leave room for the answers, and enough of them for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.rewards import scorer_of
from mloc_prefect.executors.training_data import prompt_rows
from mloc_prefect.executors.training_lengths import cut_prompts
from mloc_prefect.executors.training_recipe import Recipe

if TYPE_CHECKING:
    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_data import Row, TrainingRows
    from mloc_prefect.executors.training_recipe import Job

_ANSWER = {"ppo": 53, "grpo": 256}  # tokens, as TRL has it


class RolloutRecipe(Recipe):
    """Trains on answers that the model itself gives."""

    names_task = False

    def rows(self, spec: Fields, places: Places) -> TrainingRows:
        """Return the prompts."""
        return prompt_rows(spec, places)

    def fit(self, job: Job) -> None:
        """Keep the end of each prompt, so that prompt and answer fit; check that rules find their columns."""
        limit = self.prompt_limit(job)
        job.prompts, job.lengths = cut_prompts(job.tokenizer, job.rows.rows, limit, job.context.check)
        note = job.lengths.note("the room for prompts,")
        if note:
            job.rows.notes.append(note)
            for row, ids in zip(job.rows.rows, job.prompts, strict=True):
                if isinstance(row["prompt"], str) and len(ids) == limit:
                    row["prompt"] = job.tokenizer.decode(ids, skip_special_tokens=True)
        if job.spec.get("rewards"):
            rules = {name: job.spec.get(name) for name in ("rewards",)}
            scorer = scorer_of(type(job.spec)(rules, job.spec.path), job.places, self.allowed_rewards(job))
            first = job.rows.rows[0]
            scorer([str(first["prompt"])], [""], [first])  # a rule without its column fails here, not after an hour

    def prompt_limit(self, job: Job) -> int:
        """Return the most tokens of a prompt.

        Raises:
            UserError: The answers alone take more than there is.
        """
        whole = self.token_limit(job)
        answer = job.options.generation.integer("max_new_tokens", _ANSWER[self.kind], minimum=1)
        if answer >= whole:
            raise UserError(
                f"spec.generation.max_new_tokens {answer} leaves no room for a prompt: prompt and answer together "
                f"have {whole} tokens (training.max_seq_length, or what the model reads)"
            )
        named = job.options.training.integer("max_prompt_length", 0)
        return min(named, whole - answer) if named else whole - answer

    def enough(self, job: Job, batch: int) -> list[Row]:
        """Return the prompts, repeated until they fill a batch: TRL drops batches that are not full."""
        rows = job.rows.rows
        if len(rows) >= batch:
            return rows
        times = -(-batch // len(rows))
        job.context.log(f"{len(rows)} prompts are fewer than the {batch} of one batch, so they are repeated")
        job.prompts = job.prompts * times
        return rows * times

    @staticmethod
    def allowed_rewards(job: Job) -> list[str]:
        """Return the modules whose functions a spec may name."""
        listed: Any = job.request.settings.get("allowed_rewards") or ""
        return [name.strip() for name in str(listed).split(",") if name.strip()]
