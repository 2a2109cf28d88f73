"""Mirrors: names of models and data sets that resolve to local paths or fsspec URLs before any other source.

A mirrors file is YAML with two optional maps::

    models:
      HuggingFaceTB/SmolLM2-135M-Instruct: smollm2        # relative to this file
      meta-llama/*: s3://models/meta/*                    # the star stands for what the star matched
      mistralai/*: /models/mistral                        # no star: /models/mistral/<what the star matched>
    datasets:
      openai/gsm8k: /data/gsm8k                           # folder with train.jsonl, or main/train.jsonl
      my-rows: /data/rows.jsonl.gz                        # one file serves every split

Exact names come before patterns, patterns in the order of the file, earlier files before later ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from mloc_prefect.artifacts.data_files import split_files
from mloc_prefect.artifacts.transfer.outgoing import TransferError
from mloc_prefect.errors import ArtifactError, reason
from mloc_prefect.trust.local_inputs import is_plain_part
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["models", "datasets"]
_KINDS: tuple[Kind, ...] = ("models", "datasets")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Return whether `text` is a URL with a scheme (``s3://``, ``file://``) and not a path."""
    return _URL.match(text) is not None


@dataclass(frozen=True, slots=True)
class Mirror:
    """One line of a mirrors file.

    Attributes:
        kind: The map that contains it.
        name: Identifier or pattern with ``*``.
        target: Absolute path or URL, perhaps with ``*``.
        position: ``file:line``, for messages.
    """

    kind: Kind
    name: str
    target: str
    position: str

    @property
    def exact(self) -> bool:
        """Whether it names exactly one identifier."""
        return "*" not in self.name

    def resolve(self, identifier: str) -> str | None:
        """Return the target of `identifier` by this line, or None when the line does not match."""
        if self.exact:
            return self.target if identifier == self.name else None
        pattern = "(.*)".join(re.escape(part) for part in self.name.split("*"))
        match = re.fullmatch(pattern, identifier)
        if match is None:
            return None
        found = match.groups()
        if not all(is_plain_part(part) for part in found):
            return None  # what a star stands for must not lead out of the target
        if "*" not in self.target:
            return f"{self.target.rstrip('/')}/{found[-1]}"
        parts = self.target.split("*")
        return parts[0] + "".join(value + part for value, part in zip(found, parts[1:], strict=True))


@dataclass(frozen=True, slots=True)
class Mirrors:
    """All effective mirror lines.

    Attributes:
        files: The files, in order.
        entries: Their lines.
    """

    files: tuple[Path, ...] = ()
    entries: tuple[Mirror, ...] = ()

    @classmethod
    def load(cls, *files: Path | None) -> Mirrors:
        """Read mirrors files; None and names of missing default files count as empty.

        Args:
            files: Files in order of precedence.

        Raises:
            ArtifactError: A file cannot be read or is malformed; one line with the position.
        """
        read = tuple(dict.fromkeys(f for f in files if f is not None))
        return cls(read, tuple(entry for file in read for entry in _entries(file)))

    def find(self, kind: Kind, identifier: str) -> Mirror | None:
        """Return the line that applies to `identifier`, or None."""
        fitting = [e for e in self.entries if e.kind == kind and e.resolve(identifier) is not None]
        return next((e for e in fitting if e.exact), fitting[0] if fitting else None)

    def model(self, identifier: str) -> str | None:
        """Return the path or URL that mirrors the model `identifier`, or None."""
        entry = self.find("models", identifier)
        return entry.resolve(identifier) if entry else None

    def dataset(self, identifier: str, config: str | None = None, split: str = "train") -> tuple[str, ...] | None:
        """Return the files that hold one split of the data set `identifier`, or None when it has no mirror.

        Args:
            identifier: `spec.data.url`.
            config: `spec.data.name`, the sub-folder that is checked first.
            split: Name of the split without a slice.

        Raises:
            ArtifactError: The mirror exists, but does not have the split.
        """
        entry = self.find("datasets", identifier)
        target = entry.resolve(identifier) if entry else None
        if entry is None or target is None:
            return None
        try:
            return split_files(target, config, split)
        except ArtifactError as error:
            text = f"mirror of '{identifier}' ({entry.position}): {error.message}"
            may_pass = isinstance(error, TransferError) and error.retryable
            raise TransferError(text, retryable=may_pass, hint=error.hint) from None


def _entries(file: Path) -> Iterator[Mirror]:
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ArtifactError(
            f"mirrors file {file} cannot be read: {error.strerror}", hint="check MLOC_MIRRORS"
        ) from None
    except UnicodeDecodeError:
        raise ArtifactError(f"mirrors file {file} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise ArtifactError(f"{where}: mirrors file is not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ArtifactError(f"{file}: mirrors file is not valid YAML: {reason(error)}") from None
    if node is None:
        return
    for kind, lines in _pairs(file, node, "the file must hold `models:` and `datasets:` maps"):
        if kind.value not in _KINDS:
            raise _wrong(file, kind, f"unknown key '{kind.value}' in mirrors file; known: models, datasets")
        if isinstance(lines, yaml.ScalarNode) and lines.tag.endswith(":null"):
            continue
        for key, value in _pairs(file, lines, f"`{kind.value}:` must map names to paths"):
            yield _mirror(file, kind.value, key, value)


def _pairs(file: Path, node: yaml.Node, problem: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(file, node, problem)
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(file, key, "a name must be one plain text")
    return list(node.value)


def _mirror(file: Path, kind: Kind, key: yaml.ScalarNode, value: yaml.Node) -> Mirror:
    if not isinstance(value, yaml.ScalarNode) or not value.value.strip() or value.tag.endswith(":null"):
        raise _wrong(file, value, f"mirror of '{key.value}' must be one path or URL")
    target = value.value.strip()
    if "*" in target and target.count("*") != key.value.count("*"):
        raise _wrong(file, value, f"mirror of '{key.value}' must have as many stars as the name, or none")
    if (local := local_path(target)) is not None:
        target = str(file.parent.absolute() / Path(local).expanduser())
    return Mirror(kind, key.value.strip(), target, f"{file}:{key.start_mark.line + 1}")


def _wrong(file: Path, node: yaml.Node, problem: str) -> ArtifactError:
    mark = node.start_mark
    return ArtifactError(f"{file}:{mark.line + 1}:{mark.column + 1}: {problem}")
