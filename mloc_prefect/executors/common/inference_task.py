"""`InferenceTask`: the input and the result of an inference task, the same for every engine [protocol 4.2, 5]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.row_journal import row_key
from mloc_prefect.executors.chat.chat_template import ChatRenderer, RowError
from mloc_prefect.executors.common.adapters import find_adapter
from mloc_prefect.executors.common.checkpoint_source import find_weights
from mloc_prefect.executors.common.jsonl_export import ExportWriter
from mloc_prefect.executors.common.prompt_data import load_prompts
from mloc_prefect.executors.common.rendering import RenderStyle
from mloc_prefect.executors.common.result_items import engine_choice, items_of, usage_of
from mloc_prefect.executors.sources.models_source import identifier_of
from mloc_prefect.executors.sources.source_lookup import SourceLookup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.common.adapters import LoraAdapter
    from mloc_prefect.executors.common.prompt_data import Prompts
    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.models_source import ModelLocation

_SHOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class InferenceTask:
    """One inference task, before an engine is loaded.

    Attributes:
        identifier: The model as the user wrote it.
        location: Where its weights are.
        adapter: Its LoRA adapter, or None.
        style: How prompts are rendered.
        prompts: All rows of the task.
        keys: Their row keys.
        finished: Rows that an earlier attempt finished.
        allowed_failures: Number of rows that may fail (`inference.max_failed_rows`).
        export: The file to write in addition to the result, or None.
        why: Why the engine was chosen.
    """

    identifier: str
    location: ModelLocation
    adapter: LoraAdapter | None
    style: RenderStyle
    prompts: Prompts
    keys: Sequence[str]
    finished: Collection[int]
    allowed_failures: int
    export: ExportWriter | None
    why: str

    @classmethod
    def read(
        cls,
        spec: SpecReader,
        request: ExecutionRequest,
        context: ExecutionContext,
        *,
        model_variable: str,
        row_settings: Callable[[LoraAdapter | None], Mapping[str, Any]],
    ) -> InferenceTask:
        """Read a task: its data, its weights, and the rows that earlier attempts finished.

        Args:
            spec: The resolved spec.
            request: The attempt.
            context: Receives events, and holds the journal.
            model_variable: Environment variable that names the default model.
            row_settings: Returns the settings that determine the text of a row, for its key.

        Raises:
            UserError: The spec, the data or the model is at fault.
            Cancelled: The task was cancelled.
        """
        identifier, sources = identifier_of(spec, model_variable), SourceLookup.of(request.settings)
        style = RenderStyle.of(spec, sources)
        allowed = spec.child("inference").integer("max_failed_rows", 0)
        export = ExportWriter.of(spec, context.task_dir, sources.endpoint)
        context.phase("reading data")
        prompts = load_prompts(request.spec, request.upstream, sources)
        _check_rows(prompts, style, allowed, context)
        context.check()
        context.phase("finding model")
        location = find_weights(spec, identifier, sources, context.task_dir)
        adapter = find_adapter(spec, sources, context.task_dir, context.attempt_dir)
        settings = {**row_settings(adapter), "chat": style.chat}
        if chosen := style.options.key():
            settings["chat_options"] = chosen
        keys = [
            row_key(prompt=style.render(p), model=identifier, revision=location.fingerprint, sampling=settings)
            for p in prompts
        ]
        finished = set(context.rows.completed(keys))
        why = engine_choice(request.settings)
        return cls(identifier, location, adapter, style, prompts, keys, finished, allowed, export, why)

    @property
    def is_finished(self) -> bool:
        """Whether earlier attempts finished all rows, so that no engine is needed."""
        return len(self.finished) == len(self.prompts)

    @property
    def has_chats(self) -> bool:
        """Whether a row is a chat."""
        return any(map(self.style.is_chat, self.prompts))

    def check_chats(self, tokenizer: Any) -> None:
        """Return if the chat template takes the chats; called before weights are loaded, which takes far longer.

        Raises:
            UserError: There is no chat template, or it refuses more rows than may fail.
        """
        renderer = ChatRenderer(tokenizer, self.identifier, self.style.options)
        failures: dict[int, str] = {}
        for index, prompt in enumerate(self.prompts):
            if index in self.finished:
                continue
            try:
                if prompt.error is not None:
                    raise RowError(prompt.error)
                if self.style.is_chat(prompt):
                    self.style.text(prompt, renderer)
            except RowError as error:
                failures[index] = str(error)
        if found := too_many(failures, self.prompts, self.allowed_failures):
            raise UserError(f"{found}. No model was loaded")

    def result(self, engine: str, facts: Mapping[str, Any], context: ExecutionContext) -> dict[str, Any]:
        """Return the result object, after writing the export.

        Args:
            engine: Name of the engine.
            facts: What displays show of it.
            context: Holds the journal.
        """
        notes: list[str] = []
        exported = self.export.write(self._items(context), notes) if self.export else None
        for note in notes:
            context.log(note, "warning")
        rows = context.rows
        return {
            "ok": True,
            "model": self.identifier,
            "items": self._items(context),
            **({"jsonl_export": exported} if exported else {}),
            **({"notes": notes} if notes else {}),
            "usage": usage_of(rows, len(self.prompts)),
            "engine": {"name": engine, "why": self.why},
            "_summary": {
                "engine": engine,
                "why": self.why,
                **facts,
                "rows": len(self.prompts),
                "reused_rows": rows.reused,
                "failed_rows": len(rows.failed()),
            },
        }

    def _items(self, context: ExecutionContext) -> Iterator[dict[str, Any]]:
        return items_of(context.rows, self.prompts, self.style)


def too_many(failures: Mapping[int, str], prompts: Prompts, allowed: int) -> str | None:
    """Return one line about failed rows, None if no more than `allowed` failed."""
    if len(failures) <= allowed:
        return None
    shown = sorted(failures.items())[:_SHOWN_FAILURES]
    text = "; ".join(f"row {prompts.first + index}: {problem}" for index, problem in shown)
    more = f"; and {len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
    return f"{len(failures)} of {len(prompts)} rows failed (inference.max_failed_rows is {allowed}): {text}{more}"


def _check_rows(prompts: Prompts, style: RenderStyle, allowed: int, context: ExecutionContext) -> None:
    """Log what of the spec does not reach the rows.

    Raises:
        UserError: More rows have no value than may fail: nothing that follows can change it.
    """
    empty = {index: prompt.error for index, prompt in enumerate(prompts) if prompt.error is not None}
    if found := too_many(empty, prompts, allowed):
        raise UserError(f"{found}. No model was loaded")
    for note in prompts.notes:
        context.log(note, "warning")
    if replaced := sum(map(style.replaces_system, prompts)):
        text = "rows have a system message of their own, which takes the place of inference.system_prompt"
        context.log(f"{replaced} of {len(prompts)} {text}", "warning")
    if style.options.key() and not any(map(style.is_chat, prompts)):
        context.log("the chat options of spec.inference have no effect: no row is a chat", "warning")
