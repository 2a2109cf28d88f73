"""Where sockets and logs of running things lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.run_dir import SOCKET_LIMIT, run_dir


class TestRunDir:
    def test_modes(self, tmp_path: Path) -> None:
        path = run_dir(tmp_path / "home")
        assert path == tmp_path / "home" / "run"
        assert path.stat().st_mode & 0o777 == 0o700
        path.chmod(0o755)
        assert run_dir(tmp_path / "home").stat().st_mode & 0o777 == 0o700

    def test_long_homes_get_short_paths(self, tmp_path: Path) -> None:
        made = []
        for name in ("ä" * 40, "b" * 100):
            path = run_dir(tmp_path / name)
            made.append(path)
            assert len(os.fsencode(path / "01234567.sock.new")) <= SOCKET_LIMIT
            assert path.stat().st_mode & 0o777 == 0o700
            assert path == run_dir(tmp_path / name)
        assert len(set(made)) == 2
        for path in made:
            path.rmdir()

    def test_bad_places(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DispatchError, match="cannot make"):
            run_dir(tmp_path / "file")
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "run").symlink_to(tmp_path)
        with pytest.raises(DispatchError, match="another user"):
            run_dir(tmp_path / "home")
