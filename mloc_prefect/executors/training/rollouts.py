"""What ppo and grpo share: prompts that leave room for answers, repeated until they fill a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.recipe import Recipe
from mloc_prefect.executors.training.rewards.answer_columns import answer_columns, with_answers
from mloc_prefect.executors.training.rewards.scorers import scorer_of
from mloc_prefect.executors.training.row_lengths import cut_prompts
from mloc_prefect.executors.training.training_rows import prompt_rows
from mloc_prefect.tasks.chat_messages import ChatFormError, tools_of

if TYPE_CHECKING:
    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.training_rows import Row, TrainingRows

_DEFAULT_ANSWER_TOKENS = {"ppo": 53, "grpo": 256}  # TRL's defaults


class RolloutRecipe(Recipe):
    """Trains on answers that the model itself generates."""

    names_task = False
    cuts_chats = True
    """Whether the trainer gets the tokens of a prompt; otherwise chats that are too long cannot be cut."""

    def rows(self, spec: SpecReader, sources: SourceLookup) -> TrainingRows:
        """Return the prompts."""
        return prompt_rows(spec, sources)

    def fit(self, job: TrainingJob) -> None:
        """Keep the end of each prompt, so that prompt and answer fit; check that rules find their columns."""
        kept, notes = with_answers(job.rows.rows, job.rows.numbers, answer_columns(job.spec))
        job.rows.keep(kept)
        job.rows.notes += notes
        limit, tools = self.prompt_limit(job), _tools_of_chats(job)
        if tools and not self.cuts_chats:
            text = "rows have tools, which TRL's GRPO does not give to the chat template (ppo does)"
            job.rows.notes.append(f"{len(tools)} of {len(job.rows.rows)} {text}")
            tools = {}
        job.prompts, job.lengths = cut_prompts(
            job.tokenizer, job.rows.rows, limit, job.context.check, job.rows.numbers, tools
        )
        if not self.cuts_chats and isinstance(job.rows.rows[0]["prompt"], list):
            _leave_out_longer(job, limit)
        note = job.lengths.note("the room for prompts,")
        if note:
            job.rows.notes.append(note)
            for at in job.lengths.over:
                if isinstance(job.rows.rows[at]["prompt"], str):
                    job.rows.rows[at]["prompt"] = job.tokenizer.decode(job.prompts[at], skip_special_tokens=True)
        if job.spec.get("rewards"):
            rules = {name: job.spec.get(name) for name in ("rewards",)}
            scorer = scorer_of(type(job.spec)(rules, job.spec.path), job.sources, self.allowed_rewards(job))
            first = job.rows.rows[0]
            scorer([plain_text(first["prompt"])], [""], [first])  # a reward that cannot rate fails here, not later

    def prompt_limit(self, job: TrainingJob) -> int:
        """Return the largest number of tokens of a prompt.

        Raises:
            UserError: The answers alone exceed the limit.
        """
        whole = self.token_limit(job)
        answer = job.options.generation.integer("max_new_tokens", _DEFAULT_ANSWER_TOKENS[self.kind], minimum=1)
        if answer >= whole:
            raise UserError(
                f"spec.generation.max_new_tokens {answer} leaves no room for a prompt: prompt and answer together "
                f"have {whole} tokens (training.max_seq_length, or what the model reads)"
            )
        named = job.options.training.integer("max_prompt_length", 0)
        return min(named, whole - answer) if named else whole - answer

    def fill_batch(self, job: TrainingJob, batch: int) -> list[Row]:
        """Return the prompts, repeated until they fill a batch: TRL drops incomplete batches."""
        rows = job.rows.rows
        if len(rows) >= batch:
            return rows
        times = -(-batch // len(rows))
        job.context.log(f"{len(rows)} prompts are fewer than the {batch} of one batch, so they are repeated")
        job.prompts = job.prompts * times
        return rows * times

    @staticmethod
    def allowed_rewards(job: TrainingJob) -> list[str]:
        """Return the modules whose functions a spec may name."""
        listed: Any = job.request.settings.get("allowed_rewards") or ""
        return [name.strip() for name in str(listed).split(",") if name.strip()]


def _tools_of_chats(job: TrainingJob) -> dict[int, list[dict[str, Any]]]:
    """Return the tools of the prompts that are chats, by position.

    Raises:
        UserError: A row has something else in its column of tools.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for at, row in enumerate(job.rows.rows if isinstance(job.rows.rows[0]["prompt"], list) else ()):
        try:
            tools = tools_of(row.get("tools"))
        except ChatFormError as fault:
            raise UserError(f"row {job.rows.numbers[at]}, column 'tools' {fault}") from None
        if tools:
            found[at] = tools
    return found


def _leave_out_longer(job: TrainingJob, limit: int) -> None:
    """Leave out prompts of more than `limit` tokens.

    Raises:
        UserError: No prompt is left.
    """
    assert job.lengths is not None
    total, over = job.lengths.total, frozenset(job.lengths.over)
    kept = [at for at in range(total) if at not in over]
    if not kept:
        raise UserError(f"all {total} prompts are chats of more than {limit} tokens, which is the room for prompts")
    if over:
        text = f"{len(over)} of {total} rows are left out: chats of more than {limit} tokens, the room for prompts"
        job.rows.notes.append(text)
        job.rows.keep(kept)
        job.prompts = [job.prompts[at] for at in kept]
        job.lengths = replace(job.lengths, total=len(kept), cut=0, over=())


def plain_text(value: Any) -> str:
    """Return the text of a prompt or answer; in a chat it is that of the last message."""
    content = value[-1].get("content") if isinstance(value, list) and value else value
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)
