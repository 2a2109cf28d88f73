"""Which files a submitted spec may read: judged by what a path resolves to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ArtifactError
from mloc_prefect.settings import get_settings
from mloc_prefect.trust.input_roots import InputRoots
from mloc_prefect.trust.local_inputs import admit_local, is_hub_name, is_plain_part, path_of

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def roots(tmp_path: Path) -> InputRoots:
    """Roots with a file in each, and a secret outside of all."""
    for name in ("home/results/t1", "work/.ssh", "data", "outside", "home/results/t1/attempts/1-1", "home/.specs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("home/results/t1/out.jsonl", "work/own.jsonl", "data/rows.jsonl", "outside/secret.json", "home/key"):
        (tmp_path / name).write_text("{}")
    settings = get_settings(home=tmp_path / "home", data_roots=f"{tmp_path / 'data'}, ")
    return InputRoots.of(settings, results=settings.results_root, working=tmp_path / "work")


@pytest.mark.parametrize("name", ["home/results/t1/out.jsonl", "work/own.jsonl", "data/rows.jsonl", "work", "data/new"])
def test_results_working_directory_and_data_roots_are_read(tmp_path: Path, roots: InputRoots, name: str) -> None:
    assert roots.admit(tmp_path / name, name) == (tmp_path / name).resolve()
    assert InputRoots.from_wire(roots.to_wire()) == roots


@pytest.mark.parametrize(
    "name",
    [
        "outside/secret.json",
        "outside/not-there.json",
        "work/../outside/secret.json",
        "work//../../../../../../../../../../etc/passwd",
        "home/key",
        "home/not-there",
        "home/results/../key",
        "home/results/.specs/a.yaml",
        "home/results/t1/attempts/1-1/job.json",
        "work/.ssh/id",
        "dataset/rows.jsonl",  # a name that begins like a root
    ],
)
def test_everything_else_is_refused_whether_it_exists_or_not(tmp_path: Path, roots: InputRoots, name: str) -> None:
    with pytest.raises(ArtifactError, match="outside the folders that submitted specs may read") as caught:
        roots.admit(tmp_path / name, name)
    assert "MLOC_DATA_ROOTS" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "~/x", "/proc/self/root/etc/passwd", "/proc/self/environ", "//etc/passwd"]
)
def test_spellings_of_other_places(
    tmp_path: Path, roots: InputRoots, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "outside"))
    with pytest.raises(ArtifactError, match="outside the folders"):
        admit_local(text, tmp_path / "work", roots, as_name=True)


def test_links_are_judged_by_their_ends(tmp_path: Path, roots: InputRoots) -> None:
    (tmp_path / "work" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "work" / "in").symlink_to(tmp_path / "data" / "rows.jsonl")
    (tmp_path / "work" / "loop").symlink_to("loop")
    assert roots.admit(tmp_path / "work" / "in", "in") == tmp_path / "data" / "rows.jsonl"
    for name in ("out", "out/secret.json"):
        with pytest.raises(ArtifactError, match="outside the folders"):
            roots.admit(tmp_path / "work" / name, name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        roots.admit(tmp_path / "work" / "loop", "loop")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda inside, outside: (inside / "link").symlink_to(outside), "outside the folders"),
        (lambda inside, _outside: os.mkfifo(inside / "pipe"), "neither a file nor a folder"),
        (lambda inside, outside: (inside / "deep" / "link").symlink_to(outside / "secret.json"), "outside the folders"),
    ],
)
def test_all_that_is_in_a_folder_must_be_inside(
    tmp_path: Path, roots: InputRoots, make: Callable[[Path, Path], None], match: str
) -> None:
    folder = tmp_path / "data" / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "blob").symlink_to(tmp_path / "data" / "rows.jsonl")
    assert roots.admit_folder(folder, "model") == folder
    make(folder, tmp_path / "outside")
    with pytest.raises(ArtifactError, match=match):
        roots.admit_folder(folder, "model")


def test_a_pipe_is_no_input(tmp_path: Path, roots: InputRoots) -> None:
    os.mkfifo(tmp_path / "work" / "pipe.jsonl")
    with pytest.raises(ArtifactError, match="neither a file nor a folder"):
        roots.admit(tmp_path / "work" / "pipe.jsonl", "pipe.jsonl")


def test_the_whole_machine_is_no_working_directory(tmp_path: Path) -> None:
    found = InputRoots.of(get_settings(home=tmp_path), results=tmp_path / "results", working=Path("/"))
    assert found.working is None
    with pytest.raises(ArtifactError, match="outside the folders"):
        found.admit(Path("/etc/passwd"), "etc/passwd")


def test_results_elsewhere_are_results_if_the_operator_allows_them(tmp_path: Path, roots: InputRoots) -> None:
    task = tmp_path / "outside" / "t2"
    task.mkdir()
    (task / "out.jsonl").write_text("{}")
    (roots.results / "t2").symlink_to(task)
    with pytest.raises(ArtifactError, match="outside the folders"):
        roots.admit(roots.results / "t2" / "out.jsonl", "out")
    settings = get_settings(home=tmp_path / "home", allow_outside_results=True)
    allowed = InputRoots.of(settings, results=roots.results, working=tmp_path / "work")
    assert allowed.admit(roots.results / "t2" / "out.jsonl", "out") == task / "out.jsonl"
    for other in (tmp_path / "outside" / "secret.json", task / "attempts" / "1-1" / "job.json"):
        with pytest.raises(ArtifactError, match="outside the folders"):
            allowed.admit(other, "other")


@pytest.mark.parametrize("text", ["a\0b", "~nobody-of-that-name/x"])
def test_what_is_no_path_is_one_line(tmp_path: Path, roots: InputRoots, text: str) -> None:
    with pytest.raises(ArtifactError, match="path"):
        admit_local(text, tmp_path / "work", roots, as_name=False)


def test_names_on_the_hub_pass_unless_there_is_such_a_path(tmp_path: Path, roots: InputRoots) -> None:
    work = tmp_path / "work"
    assert admit_local("org/model", work, roots, as_name=True) == work / "org/model"
    (work / "org").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="outside the folders"):
        admit_local("org/secret.json", work, roots, as_name=True)
    assert not any(map(is_hub_name, ("/etc", "../x", "a/../b", "a/b/c", "~/x", "a//b", ".x", "a/..", "", "a b")))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///etc/a%20b", "/etc/a b"),
        ("FILE:///etc/x", "/etc/x"),
        ("local:///etc/x", "/etc/x"),
        ("file:/etc/x", "/etc/x"),
        ("data/x.jsonl", "data/x.jsonl"),
        ("https://host/x.json", None),
        ("s3://bucket/x", None),
    ],
)
def test_urls_of_this_machine_are_paths(text: str, path: str | None) -> None:
    assert path_of(text) == path


@pytest.mark.parametrize(
    "text", ["simplecache::file:///etc/x", "zip://localhost/x", "git://127.0.0.1/x", "reference://x", "s3::file:///x"]
)
def test_urls_that_could_lead_to_this_machine_are_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="no kind of URL"):
        path_of(text)


def test_parts_of_paths() -> None:
    assert is_plain_part("main")
    assert not any(map(is_plain_part, ("/etc", "..", "a/../../b", "x\0")))
