"""A pinned connection to an https host: its certificate is checked for the name of the URL, not for the address."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mloc_prefect.artifacts.transfer.delivery import HttpDestination, deliver
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError, open_url
from tests.support.turning_names import called_server, turn_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.turning_names import CalledServer

ALLOWED = AllowedHosts(frozenset({"h.example", "other.example"}))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(*form))
    return files


@contextmanager
def secured(folder: Path, name: str) -> Iterator[CalledServer]:
    """Serve https with a certificate for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder, name))
    with called_server() as served:
        served.server.socket = context.wrap_socket(served.server.socket, server_side=True)
        yield served


def test_the_certificate_is_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    turn_names(monkeypatch, {"h.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    result = tmp_path / "result.json"
    result.write_text("{}", encoding="utf-8")

    def send(url: str) -> None:
        target = HttpDestination(url, timeout=5)
        asyncio.run(deliver(target, task_id="t", result=result, worker_id=None, allowed=ALLOWED))

    with secured(tmp_path, "h.example") as served:
        good, bad = (f"https://{name}:{served.port}/x" for name in ("h.example", "other.example"))
        with open_url(good, ALLOWED, timeout=5) as answer:
            assert answer.read() == b"{}"
        send(good)
        assert [line.split()[2] for line in served.calls] == [f"h.example:{served.port}"] * 2
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            open_url(bad, ALLOWED, timeout=5)
        with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            send(bad)
        assert len(served.calls) == 2
