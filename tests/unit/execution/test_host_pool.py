"""Keys, devices and environments of hosts; no process is started here."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_prefect.execution.hosts import HostPool, HostProvider, HostSpec, MemoryHosts
from mloc_prefect.execution.hosts.host_environment import child_environment, device_variables


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
