"""The link that logs a browser in to Prefect's pages."""

from __future__ import annotations

import base64
import re
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.testclient import TestClient

from mloc_prefect.prefect_ext.server.login_page import PATH, login_file, login_url, serve_login_page

UI, AUTH = "http://127.0.0.1:4200", "mloc:a-secret"


def test_the_link_has_the_login_where_browsers_keep_it_for_themselves() -> None:
    parts = urlsplit(login_url(UI, AUTH))
    assert (parts.netloc, parts.path, parts.query) == ("127.0.0.1:4200", PATH, "")
    assert base64.b64decode(parts.fragment).decode() == AUTH


def test_the_file_leads_there_with_one_click_or_none() -> None:
    text = login_file(UI, AUTH)
    assert re.findall(r'(?:url=|href=")([^"]+)"', text) == [login_url(UI, AUTH)] * 2


def test_the_page_comes_before_those_of_prefect_and_holds_no_secret() -> None:
    app = FastAPI()

    @app.get("/{path:path}")
    def pages(path: str) -> str:
        return path

    serve_login_page(app)
    answer = TestClient(app).get(PATH)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert 'localStorage.setItem("prefect-password", login)' in answer.text
    assert TestClient(app).get("/runs").json() == "runs"


def test_the_pages_of_the_installed_prefect_keep_their_login_there() -> None:
    """Both user interfaces read the login from the browser's storage under this name."""
    from pathlib import Path

    import prefect

    for build in ("ui", "ui-v2"):
        assets = Path(prefect.__file__).parent / "server" / build / "assets"
        assert any("prefect-password" in file.read_text(errors="replace") for file in assets.glob("*.js")), build
