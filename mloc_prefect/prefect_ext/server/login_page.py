"""The page through which a link logs a browser in to Prefect's pages, and the file that opens it with one click.

Prefect's pages keep the login in the browser's storage. The link has it behind the `#`, which browsers do not send: it
appears in no log of a server, and other sites do not learn it from a `Referer`.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

PATH = "/mloc-login"

_STORED = "prefect-password"  # the name in the browser's storage, of both of Prefect's user interfaces
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Prefect: log in</title>
<body style="font-family: sans-serif; margin: 3em"><p id="text">Logging in ...</p>
<script>
const login = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
fetch("/api/admin/version", {{headers: {{Authorization: "Basic " + login}}}}).then(answer => {{
  if (!answer.ok) throw new Error("The server does not accept this login. Was the link made for another MLOC_HOME?");
  localStorage.setItem("{_STORED}", login);
  location.replace("/");
}}).catch(error => document.getElementById("text").textContent = error.message);
</script></body></html>
"""
_FILE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={url}">
<title>Prefect: log in</title><body><p><a href="{url}">Open Prefect's pages</a></p></body></html>
"""


def login_url(ui_url: str, auth: str) -> str:
    """Return the link that logs a browser in; it holds the login.

    Args:
        ui_url: Address of Prefect's pages.
        auth: `user:password` of Prefect's API.
    """
    return f"{ui_url}{PATH}#{base64.b64encode(auth.encode()).decode()}"


def login_file(ui_url: str, auth: str) -> str:
    """Return the content of a page that leads there, for a file that only its owner can read."""
    return _FILE.format(url=html.escape(login_url(ui_url, auth), quote=True))


def serve_login_page(app: FastAPI) -> None:
    """Serve the page in Prefect's `app`; call it before it serves."""
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    async def page(request: Request) -> Response:
        del request
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})

    app.router.routes.insert(0, Route(PATH, page, methods=["GET"]))  # before the pages, which take every path
