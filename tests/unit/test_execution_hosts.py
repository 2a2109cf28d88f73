"""Keys, devices, directories, and what the supervisor reads of the system; no process is started here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution import supervisor
from mloc_prefect.execution.childenv import child_environment, device_variables
from mloc_prefect.execution.dirs import SOCKET_LIMIT, run_dir
from mloc_prefect.execution.hosts import HostPool, HostProvider, HostSpec, MemoryHosts
from mloc_prefect.execution.hosttypes import log_tail
from mloc_prefect.execution.owners import new_mark


class TestSpec:
    def test_key(self) -> None:
        spec = HostSpec("a:B", "/python", {"model": "m", "n": 1}, ("gpu:0",), {"X": "1"})
        assert len(spec.key) == 16
        assert HostSpec("a:B", "/python", {"n": 1, "model": "m"}, ("gpu:0",), {"X": "1"}).key == spec.key
        assert HostSpec.from_wire(spec.to_wire()) == spec
        others = [
            HostSpec("a:C", "/python", {"model": "m", "n": 1}, ("gpu:0",), {"X": "1"}),
            HostSpec("a:B", "/other", {"model": "m", "n": 1}, ("gpu:0",), {"X": "1"}),
            HostSpec("a:B", "/python", {"model": "m", "n": 2}, ("gpu:0",), {"X": "1"}),
            HostSpec("a:B", "/python", {"model": "m", "n": 1}, ("gpu:1",), {"X": "1"}),
            HostSpec("a:B", "/python", {"model": "m", "n": 1}, ("gpu:0",), {}),
        ]
        assert len({spec.key, *(other.key for other in others)}) == 6

    @pytest.mark.parametrize(
        ("devices", "visible"),
        [((), ""), (("cpu",), ""), (("gpu:0",), "0"), (("gpu:2", "cpu", "gpu:GPU-ab12"), "2,GPU-ab12")],
    )
    def test_devices(self, devices: tuple[str, ...], visible: str) -> None:
        assert device_variables(devices)["CUDA_VISIBLE_DEVICES"] == visible

    def test_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "/users/own")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        env = child_environment(HostSpec("a:B", "/python", env={"CUDA_VISIBLE_DEVICES": "5"}), tmp_path)
        assert env["CUDA_VISIBLE_DEVICES"] == "5"  # the spec has the last word, the owner's own value has none
        first, second = env["PYTHONPATH"].split(":")
        assert second == "/users/own"
        assert (Path(first) / "mloc_prefect" / "errors.py").is_file()
        assert child_environment(HostSpec("a:B", "/python"), tmp_path)["CUDA_VISIBLE_DEVICES"] == ""

    @pytest.mark.parametrize("name", ["MLOC_TOKEN", "ORCHESTRATOR_TOKEN", "REDIS_URL", "PREFECT_API_AUTH_STRING"])
    def test_what_opens_our_services_is_no_business_of_executors(self, name, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv(name, "secret")
        assert name not in child_environment(HostSpec("a:B", "/python", env={name: "secret"}), tmp_path)

    async def test_both_providers_are_providers(self, tmp_path: Path) -> None:
        providers: list[HostProvider] = [HostPool(tmp_path, 1, 1), MemoryHosts()]
        for provider in providers:
            assert await provider.exit_of("none") is None
            assert await provider.discard("none") is None


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


class TestSupervisor:
    def test_process_table(self) -> None:
        table = supervisor.process_table()
        me = table[os.getpid()]
        assert (me.parent, me.session, me.alive) == (os.getppid(), os.getsid(0), True)
        assert supervisor.read_process(2**30) is None

    def test_zombies_hold_nothing(self) -> None:
        assert not supervisor.Process(9, 1, 9, "Z", 1).alive
        assert supervisor.Process(9, 1, 9, "Z", 4).alive  # its other threads still end
        assert supervisor.Process(9, 1, 9, "D", 1).alive

    def test_family(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By descent from supervisor 100, by session of host 101, by mark, and by descent from any of those."""
        processes = [
            supervisor.Process(100, 1, 100, "S", 1),
            supervisor.Process(101, 100, 101, "S", 1),  # the host
            supervisor.Process(102, 101, 102, "S", 1),  # by descent, in a session of its own
            supervisor.Process(103, 1, 101, "S", 1),  # by session
            supervisor.Process(104, 1, 104, "S", 1),  # by mark
            supervisor.Process(105, 104, 105, "S", 1),  # child of a marked one
            supervisor.Process(106, 101, 106, "Z", 1),  # dead
            supervisor.Process(107, 1, 107, "S", 1),  # a stranger
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


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(5000)) + b"\xff last")
    tail = log_tail(log)
    assert tail.splitlines()[-1] == "\ufffd last"
    assert len(tail.splitlines()) == 40
    assert log_tail(log, lines=2).splitlines()[0] == "line 4999"
    assert log_tail(tmp_path / "absent") == ""
