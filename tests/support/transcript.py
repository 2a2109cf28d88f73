"""Recorded conversations with MLOC's orchestrator, and the comparison of our responses with the recorded ones.

`tests/data/transcript/*.json` is the recording. In it task ids are `<task-N>` in order of appearance, times `<ts>`,
ports `<port>`, paths `<results-dir>`; a text that is the body of an earlier step is `<body of step N>`.
`tests/transcript_differences.yaml` lists every deliberate difference; a listed one that does not occur is an error too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "data" / "transcript"
DIFFERENCES = Path(__file__).parents[1] / "transcript_differences.yaml"

_POSITION = ("scenario", "step", "field")
ABSENT, PRESENT = "<absent>", "<present>"
_BODY = re.compile(r"<body of step (\d+)>")
_ID = re.compile(r"<task-\d+>")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)")
_NEVER = "00000000-0000-4000-8000-{:012d}"


@cache
def scenario(name: str) -> dict[str, Any]:
    """Return one recorded scenario by the number at the start of its file name, with references expanded."""
    path = next(DATA.glob(f"{name}*.json"))
    found = json.loads(path.read_text(encoding="utf-8"))
    bodies = {str(step["n"]): step["body"] for step in found["steps"] if isinstance(step.get("body"), str)}
    return _expanded(found, bodies)


def scenarios() -> list[str]:
    """Return the numbers of all recorded scenarios."""
    return sorted(path.name.partition("_")[0] for path in DATA.glob("*.json"))


def _expanded(value: Any, bodies: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, bodies) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, bodies) for item in value]
    match = _BODY.fullmatch(value) if isinstance(value, str) else None
    return bodies[match[1]] if match else value


@dataclass
class Names:
    """Placeholders for ids, port and paths of this run.

    Attributes:
        port: Port of our endpoint.
        results: Its results root.
        alike: Texts that count as equal, e.g. two equal workers of which either may be chosen.
        amended: Parts of recorded texts, and what was sent instead.
    """

    port: str
    results: str
    alike: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    amended: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        """Return a recorded text for sending; ids that we never assigned become unknown ids."""
        text = text.replace("<port>", self.port).replace("<results-dir>", self.results)
        return _ID.sub(lambda m: self.ids.get(m[0]) or _NEVER.format(int(m[0][6:-1])), text)

    def learn(self, recorded: Any, ours: Any) -> None:
        """Learn our ids from a response, by their position in the recorded response."""
        if isinstance(recorded, dict) and isinstance(ours, dict):
            for key in recorded.keys() & ours.keys():
                self.learn(recorded[key], ours[key])
        elif isinstance(recorded, list) and isinstance(ours, list):
            for left, right in zip(recorded, ours, strict=False):
                self.learn(left, right)
        elif isinstance(recorded, str) and isinstance(ours, str) and _ID.fullmatch(recorded):
            self.ids.setdefault(recorded, ours)

    def normal(self, value: Any) -> Any:
        """Return our response with the placeholders of the recording."""
        if isinstance(value, dict):
            return {self.normal(key): self.normal(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.normal(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def same(self, value: Any) -> Any:
        """Return a recorded value with the amendments applied and equal texts unified."""
        if isinstance(value, dict):
            return {self.same(key): self.same(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.same(item) for item in value]
        if not isinstance(value, str):
            return value
        for old, new in self.amended.items():
            value = value.replace(old, new)
        return self.alike.get(value, value)

    def _text(self, text: str) -> str:
        if _TIME.fullmatch(text):
            return "<ts>"
        for name, task_id in self.ids.items():
            text = text.replace(task_id, name)
        text = text.replace(self.results, "<results-dir>").replace(f":{self.port}/", ":<port>/")
        return self.alike.get(text, text)


@dataclass(frozen=True)
class Found:
    """One difference between our response and the recorded one.

    Attributes:
        field: Path, e.g. `json.tasks[0].status`.
        recorded: The recorded value.
        ours: Our value.
    """

    field: str
    recorded: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.field}: recorded {self.recorded!r}, ours {self.ours!r}"


def compare(recorded: Any, ours: Any, path: str = "json") -> list[Found]:
    """Return all differences between normalized values; a missing or additional key is one difference."""
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = []
        for key in (*recorded, *(key for key in ours if key not in recorded)):
            found += compare(recorded.get(key, ABSENT), ours.get(key, ABSENT), f"{path}.{key}")
        return found
    if isinstance(recorded, list) and isinstance(ours, list):
        found = []
        for index in range(max(len(recorded), len(ours))):
            left, right = (value[index] if index < len(value) else ABSENT for value in (recorded, ours))
            found += compare(left, right, f"{path}[{index}]")
        return found
    return [] if recorded == ours and type(recorded) is type(ours) else [Found(path, recorded, ours)]


def compare_messages(recorded: list[Any], ours: list[Any]) -> list[Found]:
    """Return the differences between two lists of `[channel, message]`, in any order.

    Messages are matched by channel, type, task, worker, status, and whether they come from the dispatcher (without
    `extra`) or from the worker.
    """
    left, right = _by_label(recorded), _by_label(ours)
    found = []
    for label in (*left, *(label for label in right if label not in left)):
        if label not in right:
            found.append(Found(f"messages.{label}", PRESENT, ABSENT))
        elif label not in left:
            found.append(Found(f"messages.{label}", ABSENT, PRESENT))
        else:
            found += compare(left[label], right[label], f"messages.{label}")
    return found


def label(channel: str, message: dict[str, Any]) -> str:
    """Return what identifies a message, e.g. `workers.events/STATUS/RUNNING/w-a/<task-1>`."""
    extra = message.get("extra")
    parts = [channel, message.get("type"), message.get("status"), message.get("worker_id"), message.get("task_id")]
    if isinstance(extra, dict):
        parts += [extra.get("task_id") or extra.get("last_task") or "registered"]
    return "/".join(str(part) for part in parts if part)


def _by_label(messages: list[Any]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    found = {}
    for channel, message in messages:
        name = label(channel, message)
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name}#{counts[name]}"] = message
    return found


@dataclass
class Differences:
    """The deliberate differences, and which of them occurred.

    Attributes:
        entries: `scenario`, `step`, `field`, `ours`, `reason` each; the first three are patterns (only `*` is special)
            or lists of patterns, of which every combination must occur. Instead of `ours` an entry may have `replaced`:
            then our text is the recorded one with these replacements.
        amended: Steps that we refuse and that are sent again with a change, so that the rest can be compared:
            `scenario`, `step`, `replace`, `by`, `reason`.
    """

    entries: list[dict[str, Any]]
    amended: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)

    @classmethod
    def load(cls) -> Differences:
        """Read the file."""
        found = yaml.safe_load(DIFFERENCES.read_text(encoding="utf-8"))
        return cls([one for entry in found["differences"] for one in _single(entry)], found["amended"])

    def unexplained(self, name: str, step: str, found: list[Found]) -> list[Found]:
        """Return the differences that no entry explains; entries that explain one count as used."""
        return [one for one in found if not self._explained(name, step, one)]

    def amendments(self, name: str, step: str) -> list[dict[str, Any]]:
        """Return the changes to apply to a step before it is sent again."""
        return [entry for entry in self.amended if _fits(entry, name, step)]

    def unused(self) -> list[dict[str, Any]]:
        """Return the entries that explained no difference."""
        return [entry for index, entry in enumerate(self.entries) if index not in self.used]

    def _explained(self, name: str, step: str, one: Found) -> bool:
        for index, entry in enumerate(self.entries):
            if _fits(entry, name, step) and _matches(entry["field"], one.field) and _is_ours(entry, one):
                self.used.add(index)
                return True
        return False


def _single(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one entry per combination of scenario, step and field."""
    lists = [value if isinstance(value, list) else [value] for value in (entry[key] for key in _POSITION)]
    return [entry | dict(zip(_POSITION, map(str, values), strict=True)) for values in product(*lists)]


def _fits(entry: dict[str, Any], name: str, step: str) -> bool:
    return _matches(str(entry["scenario"]), name) and _matches(str(entry["step"]), step)


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), text) is not None


def _is_ours(entry: dict[str, Any], one: Found) -> bool:
    if "replaced" in entry:
        if not isinstance(one.recorded, str):
            return False
        text = one.recorded
        for old, new in entry["replaced"].items():
            text = text.replace(old, new)
        return bool(one.ours == text)
    if entry["ours"] == "<more>":  # a key that is not in the recording, with any value
        return one.recorded == ABSENT
    return bool(entry["ours"] == one.ours and type(entry["ours"]) is type(one.ours))
