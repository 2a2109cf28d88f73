"""What is known of a running `mloc up`, and the secrets that it keeps."""

from __future__ import annotations

import os
import stat

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.services.secret_files import SecretFiles
from mloc_prefect.services.up.up_state import UpFiles, UpState, running


def test_secrets_are_made_once_in_files_that_only_the_owner_reads(tmp_path):
    files = SecretFiles.below(tmp_path)
    first = files.read_or_make(files.token)
    assert len(first) == 32
    assert files.read_or_make(files.token) == first
    files.token.chmod(0o644)
    assert files.read_or_make(files.token) == first
    assert stat.S_IMODE(files.token.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert files.read_or_make(files.prefect_auth, "mloc:").startswith("mloc:")
    files.token.write_text("\n")
    with pytest.raises(DispatchError, match="is empty"):
        files.read_or_make(files.token)


def test_one_for_each_home_and_its_state_is_gone_with_it(tmp_path):
    assert running(tmp_path / "absent") is None
    first, second = UpFiles(tmp_path), UpFiles(tmp_path)
    assert first.claim()
    assert not second.claim()
    assert second.holder() == os.getpid()
    assert running(tmp_path) is None
    state = UpState(pid=os.getpid(), url="http://x", api_url="a", ui_url="u", redis="r", parts={"bridge": 7})
    first.write(state)
    assert running(tmp_path) == state
    first.release()
    assert running(tmp_path) is None
    assert second.claim()
    second.release()


def test_ports_are_kept_and_nonsense_in_their_file_does_not_matter(tmp_path):
    files = UpFiles(tmp_path)
    assert files.ports() == {}
    files.keep_ports({"prefect": 4200, "redis": 6379})
    assert files.ports() == {"prefect": 4200, "redis": 6379}
    (tmp_path / "ports.json").write_text("{")
    assert files.ports() == {}
