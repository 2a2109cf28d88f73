"""Records as answers show them: without the secrets of the spec. [protocol 7, quirk 15]."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.secrets import mask_document, mask_text

if TYPE_CHECKING:
    from mloc_prefect.bridge.records import TaskRecord

_KEPT_CHARACTERS = 4 << 20


class Masker:
    """Masks records; the text of a submission, which all its tasks share, is masked once and kept for a while."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._characters = 0

    def answer(self, record: TaskRecord) -> dict[str, Any]:
        """Return the answer object of a record."""
        data = record.to_dict()
        data["raw_yaml"] = self._text(record.submission_id or record.task_id, record.raw_yaml)
        data["parsed"] = mask_document(record.parsed)
        return data

    def document(self, value: Any) -> Any:
        """Return a copy of a plain document without secrets."""
        return mask_document(value)

    def _text(self, key: str, text: str) -> str:
        found = self._texts.get(key)
        if found is not None and found[0] == hash(text):
            self._texts.move_to_end(key)
            return found[1]
        masked = mask_text(text)
        self._characters += len(masked) - len(self._texts.pop(key, (0, ""))[1])
        self._texts[key] = (hash(text), masked)
        while self._characters > _KEPT_CHARACTERS and self._texts:
            _, (_, oldest) = self._texts.popitem(last=False)
            self._characters -= len(oldest)
        return masked
