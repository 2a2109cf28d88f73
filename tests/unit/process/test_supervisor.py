"""What the supervisor reads of the system; no process is started here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mloc_prefect.process import supervisor
from mloc_prefect.process.marks import new_mark


class TestSupervisor:
    def test_process_table(self) -> None:
        table = supervisor.process_table()
        me = table[os.getpid()]
        assert (me.parent, me.session, me.alive) == (os.getppid(), os.getsid(0), True)
        assert supervisor.read_process(2**30) is None

    def test_zombies_hold_nothing(self) -> None:
        assert not supervisor.ProcessEntry(9, 1, 9, "Z", 1).alive
        assert supervisor.ProcessEntry(9, 1, 9, "Z", 4).alive  # its other threads still end
        assert supervisor.ProcessEntry(9, 1, 9, "D", 1).alive

    def test_family(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By descent from supervisor 100, by session of host 101, by mark, and by descent from any of those."""
        processes = [
            supervisor.ProcessEntry(100, 1, 100, "S", 1),
            supervisor.ProcessEntry(101, 100, 101, "S", 1),  # the host
            supervisor.ProcessEntry(102, 101, 102, "S", 1),  # by descent, in a session of its own
            supervisor.ProcessEntry(103, 1, 101, "S", 1),  # by session
            supervisor.ProcessEntry(104, 1, 104, "S", 1),  # by mark
            supervisor.ProcessEntry(105, 104, 105, "S", 1),  # child of a marked one
            supervisor.ProcessEntry(106, 101, 106, "Z", 1),  # dead
            supervisor.ProcessEntry(107, 1, 107, "S", 1),  # a stranger
        ]
        monkeypatch.setattr(supervisor, "process_table", lambda: {p.pid: p for p in processes})
        monkeypatch.setattr(supervisor, "_marked", lambda pid, mark: pid in {101, 104} and mark == "m")
        assert supervisor.family("m", ancestor=100, session=101) == {101, 102, 103, 104, 105}
        assert supervisor.family("m") == {101, 102, 104, 105}
        assert supervisor.family("n") == set()

    def test_counters_of_the_oom_killer(self, tmp_path: Path) -> None:
        events = tmp_path / "memory.events"
        events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
        assert supervisor._counter(str(events)) == 2
        assert supervisor._counter(str(tmp_path / "absent")) == 0
        assert all(isinstance(count, int) for count in supervisor._oom_kills())

    @pytest.mark.parametrize(
        ("code", "counts", "expected"),
        [
            (0, (0, 0), {"code": 0, "signal": None, "oom": False}),
            (3, (9, 9), {"code": 3, "signal": None, "oom": False}),
            (-9, (0, 0), {"code": None, "signal": "SIGKILL", "oom": False}),
            (-9, (1, 1), {"code": None, "signal": "SIGKILL", "oom": True}),
            (-9, (0, 1), {"code": None, "signal": "SIGKILL", "oom": True}),
            (-11, (1, 1), {"code": None, "signal": "SIGSEGV", "oom": False}),
            (-40, (0, 0), {"code": None, "signal": "signal 40", "oom": False}),
        ],
    )
    def test_exits(
        self, monkeypatch: pytest.MonkeyPatch, code: int, counts: tuple[int, ...], expected: dict[str, object]
    ) -> None:
        monkeypatch.setenv(supervisor.MARK, "m")
        config = {"argv": ["x"], "log": "l", "cwd": "/", "lifeline": 3, "status": 4, "owner": 1}
        watcher = supervisor._Supervisor(config)
        watcher._oom_counts.append((0, 0))
        monkeypatch.setattr(supervisor, "_oom_kills", lambda: counts)
        assert watcher._exit(code) == expected

    def test_marks(self, tmp_path: Path) -> None:
        first, second = new_mark(tmp_path), new_mark(tmp_path)
        assert first != second
        assert first.split(".")[2] == str(os.getpid())

    def test_long_logs_lose_their_beginning(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with path.open("ab", buffering=0) as log:  # as the host has it open
            log.write(b"".join(b"%09d\n" % n for n in range(1000)))
            supervisor.trim_log(str(path), limit=20_000, keep=100)
            assert path.stat().st_size == 10_000
            supervisor.trim_log(str(path), limit=5_000, keep=100)
            log.write(b"goes on\n")
        lines = path.read_text().splitlines()
        assert lines[0].startswith("mloc: the lines before were dropped")
        assert lines[1:] == [f"{n:09d}" for n in range(990, 1000)] + ["goes on"]
        supervisor.trim_log(str(tmp_path / "absent"), limit=1, keep=1)

    def test_a_process_that_may_not_be_killed_does_not_hold_up_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        alive = {11, 12}
        monkeypatch.setattr(supervisor, "family", lambda *_args, **_options: set(alive))

        def kill(pid: int, number: int) -> None:
            if pid == 11:
                raise PermissionError
            alive.discard(pid)

        monkeypatch.setattr(os, "kill", kill)
        assert supervisor.kill_family("m")
        assert alive == {11}

    def test_signals_have_names(self) -> None:
        assert supervisor._signal_name(signal.SIGKILL) == "SIGKILL"
