"""`SpecRules`: judges the inputs of a spec, what it would run, and whom it would call, before anything is opened.

The endpoint applies them when a spec is submitted. The worker applies them again, before a run starts, once references
are filled in, and where an attempt runs: it trusts no stored text more than a submitter. `mloc run` asks for consent to
code and to hosts only; its user reads his own files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import destination_dir
from mloc_prefect.artifacts.mirrors import Mirrors
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, check_url
from mloc_prefect.errors import ArtifactError
from mloc_prefect.tasks.base import (
    CODE_NOT_ALLOWED,
    HOST_NOT_ALLOWED,
    INPUT_NOT_ALLOWED,
    OUTPUT_NOT_ALLOWED,
    SpecProblem,
)
from mloc_prefect.trust.input_roots import InputRoots, shown_path
from mloc_prefect.trust.local_inputs import admit_local, find_local, is_hub_name, is_plain_part, names_no_input, path_of
from mloc_prefect.trust.remote_code import CodeConsent, has_reference
from mloc_prefect.trust.spec_calls import calls_of
from mloc_prefect.trust.spec_inputs import VLLM_INPUTS, inputs_of, values_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.trust.spec_inputs import SpecInput


_NAMES = ("models", "datasets")
"""Kinds of inputs that may be names on the hub or in mirrors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRules:
    """What the specs of one origin may read and run.

    Attributes:
        settings: The settings of the process that judges.
        submitted: Whether the specs come from others; the user of `mloc run` reads his own files.
        results: Results root.
        base: Folder that relative paths of the spec start from.
        working: Working directory of the service.
    """

    settings: MlocSettings
    submitted: bool
    results: Path
    base: Path
    working: Path

    @property
    def roots(self) -> InputRoots | None:
        """Where inputs must be; None for specs of the user himself."""
        if not self.submitted:
            return None
        return InputRoots.of(self.settings, results=self.results, working=self.working)

    @property
    def allowed(self) -> AllowedHosts:
        """Which hosts the specs may call."""
        return AllowedHosts.of(self.settings, loopback=True, api_url=os.environ.get("PREFECT_API_URL"))

    def problems(self, spec: Mapping[str, Any], *, filled: bool = False) -> list[SpecProblem]:
        """Return everything in a spec that may not be read, run or called.

        Args:
            spec: The spec; values with `${...}` are left for later.
            filled: Whether references are filled in: a `${` that is left is plain text, and nothing is left for later.
        """
        consent = CodeConsent.of(self.settings.allow_remote_code)
        found = [
            SpecProblem(problem.path, CODE_NOT_ALLOWED, problem.message, problem.fix)
            for problem in consent.problems(spec, VLLM_INPUTS, filled=filled)
        ]
        inputs = [named for named in inputs_of(spec) if filled or not has_reference(named.text)]
        roots: InputRoots | None = None
        for named in inputs if self.submitted else ():
            try:
                if self._names_no_file(named):
                    continue
                roots = roots or self.roots
                assert roots is not None
                self._check(named, roots)
            except ArtifactError as error:
                found.append(SpecProblem(named.path, INPUT_NOT_ALLOWED, error.message, error.hint))
        if self.submitted and not filled:  # later the stage runner resolves it, for the root of its own machine
            found += self._outputs(spec)
        refused = {problem.path for problem in found}
        return [
            *found,
            *(problem for problem in self._calls(spec, inputs, filled=filled) if problem.path not in refused),
        ]

    def _calls(self, spec: Mapping[str, Any], inputs: Sequence[SpecInput], *, filled: bool) -> Iterator[SpecProblem]:
        called = [named for named in calls_of(spec, inputs) if filled or not has_reference(named.text)]
        allowed = self.allowed if called else None
        for named in called:
            assert allowed is not None
            try:
                check_url(named.text, allowed)
            except ArtifactError as error:
                if not self._is_mirrored(named):
                    yield SpecProblem(named.path, HOST_NOT_ALLOWED, error.message, error.hint)

    def _outputs(self, spec: Mapping[str, Any]) -> Iterator[SpecProblem]:
        for path, value in values_at(spec, "output.destination"):
            text = str(value.get("path")) if isinstance(value, Mapping) else ""
            if has_reference(text) or not (".." in text or "://" in text or text.strip().startswith(("/", "~"))):
                continue  # a plain name leaves the root by a link only, which the stage runner sees
            try:
                destination_dir(self.results, "task", value, allow_outside=self.settings.allow_outside_results)
            except ArtifactError as error:
                yield SpecProblem((*path, "path"), OUTPUT_NOT_ALLOWED, error.message, error.hint)

    def _names_no_file(self, named: SpecInput) -> bool:
        """Return whether nothing confined is named, as in most specs; then the roots need not be resolved."""
        if named.kind not in _NAMES or ":" in named.text:
            return False
        if is_hub_name(named.text):
            return not os.path.lexists(os.path.join(self.base, named.text))  # noqa: PTH118 - asked for each submission
        return names_no_input(named.text, find_local(named.text, self.base), as_name=True)

    def _check(self, named: SpecInput, roots: InputRoots) -> None:
        if named.kind == "part":
            if not is_plain_part(named.text):
                raise ArtifactError(f"{shown_path(named.text)} leaves its folder", hint="write a plain name")
            return
        try:
            path = path_of(named.text)
            if named.kind == "store":
                if path is None:
                    message = f"{shown_path(named.text)} is no folder of this machine"
                    raise ArtifactError(message, hint="write the path of a folder")
                roots = replace(roots, linked=False)  # what a task wrote is no store, wherever its results are
            if path is not None:
                admit_local(path, self.base, roots, as_name=named.kind in _NAMES)
        except ArtifactError:
            if not self._is_mirrored(named):  # where a mirror leads, the operator says
                raise

    def _is_mirrored(self, named: SpecInput) -> bool:
        if named.kind not in _NAMES:
            return False
        own = self.settings.home / "mirrors.yaml"
        files = tuple(file for file in (self.settings.mirrors_file, own) if file is not None and file.is_file())
        mirrors = _mirrors(files, tuple(file.stat().st_mtime_ns for file in files))
        return mirrors.find("models" if named.kind == "models" else "datasets", named.text) is not None


@lru_cache(maxsize=2)
def _mirrors(files: tuple[Path, ...], changed: tuple[int, ...]) -> Mirrors:
    del changed  # part of the cache key only
    return Mirrors.load(*files)


def refusal(problems: Sequence[SpecProblem], where: str) -> tuple[str, str | None]:
    """Return one line about problems, and how to mend them.

    Args:
        problems: At least one problem.
        where: What they are about, e.g. `stage 'a'`.
    """
    texts = (f"{where}: spec.{'.'.join(map(str, p.path))}: {p.message}" for p in problems)
    fixes = dict.fromkeys(p.suggestion for p in problems if p.suggestion)
    return "; ".join(texts), "; ".join(fixes) or None
