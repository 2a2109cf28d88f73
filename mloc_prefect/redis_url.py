"""URLs of Redis: one server, with or without TLS, a unix socket, or a service behind Sentinels. Standard library only.

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?OPTIONS]        rediss:// with TLS
    unix://[USER:PASSWORD@]PATH[?db=DATABASE]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT].../SERVICE[/DATABASE][?OPTIONS]        rediss+sentinel://

`valkey` may stand in the place of `redis`. The form with Sentinels is the one that Prefect understands too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote

_PORT, _SENTINEL_PORT = 6379, 26379
FORM = "redis://[:PASSWORD@]HOST:PORT/DATABASE"
_SENTINEL_FORM = "redis+sentinel://[:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE/DATABASE"


class RedisUrlError(ValueError):
    """The URL cannot be read. The message does not repeat it: it may hold a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """A URL, taken apart.

    Attributes:
        scheme: `redis`, `rediss` or `unix`.
        login: `user:password` as written, without the `@`; empty for none.
        members: Host and port of the server, or of each Sentinel; none for a socket.
        service: Name of the service at the Sentinels, or None.
        path: Path of the socket, or the database with its slash, or empty.
        query: Options as written, without the question mark.
    """

    scheme: str
    login: str = ""
    members: tuple[tuple[str, int], ...] = ()
    service: str | None = None
    path: str = ""
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Take a URL apart.

        Raises:
            RedisUrlError: It has none of the forms above.
        """
        scheme, found, rest = text.strip().partition("://")
        scheme = scheme.lower().replace("valkey", "redis", 1)
        base, _, kind = scheme.partition("+")
        if (
            not found
            or base not in {"redis", "rediss", "unix"}
            or kind not in {"", "sentinel"}
            or scheme == "unix+sentinel"
        ):
            raise RedisUrlError(f"the form is {FORM} or {_SENTINEL_FORM}")
        rest, _, query = rest.partition("?")
        if base == "unix":
            login, _, path = rest.rpartition("@")
            return cls(scheme=base, login=login, path=path, query=query)
        netloc, _, path = rest.partition("/")
        login, _, hosts = netloc.rpartition("@")
        if not kind:
            member = _member(hosts or "localhost", _PORT)
            return cls(scheme=base, login=login, members=(member,), path=_database(path.strip("/")), query=query)
        service, _, database = path.partition("/")
        if not service:
            raise RedisUrlError(f"a URL of Sentinels names their service: {_SENTINEL_FORM}")
        members = tuple(_member(host.strip(), _SENTINEL_PORT) for host in hosts.split(","))
        return cls(
            scheme=base,
            login=login,
            members=members,
            service=unquote(service),
            path=_database(database.strip("/")),
            query=query,
        )

    @property
    def has_tls(self) -> bool:
        """Whether the connections are encrypted."""
        return self.scheme == "rediss"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts of the members."""
        return tuple(host for host, _ in self.members)

    @property
    def has_password(self) -> bool:
        """Whether clients send a password."""
        return bool(self.login.partition(":")[2] or dict(parse_qsl(self.query)).get("password"))

    @property
    def shown(self) -> str:
        """The URL without password and options, for people."""
        return self._text("", self.path, "")

    @property
    def server(self) -> str:
        """The server or Sentinels, for people."""
        if self.scheme == "unix":
            return self.path
        names = ", ".join(f"{_bracketed(host)}:{port}" for host, port in self.members)
        return f"{self.service} behind {names}" if self.service else names

    def with_database(self, offset: int) -> str:
        """Return the URL of the database `offset` after this one.

        Raises:
            RedisUrlError: The database is not a number, or this is a socket.
        """
        if self.scheme == "unix":
            raise RedisUrlError(f"a unix socket cannot be used here: write it as {FORM}")
        number = int(_database(self.path.strip("/")).strip("/") or 0)
        return self._text(self.login, f"/{number + offset}", self.query)

    def standalone(self) -> str:
        """Return the URL of one server with the same login, database and options: the form that the client reads."""
        first = self.members[:1]
        text = replace(self, service=None, members=first)
        return text._text(self.login, self.path, self.query)

    def _text(self, login: str, path: str, query: str) -> str:
        at = f"{login}@" if login else ""
        tail = f"{path}?{query}" if query else path
        if self.scheme == "unix":
            return f"unix://{at}{tail}"
        hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in self.members)
        if self.service is None:
            return f"{self.scheme}://{at}{hosts}{tail}"
        return f"{self.scheme}+sentinel://{at}{hosts}/{self.service}{tail}"


def _member(text: str, port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[^\]]+\]|[^:,\[\]]+)(?::(\d{1,5}))?", text)
    if match is None or int(match[2] or 1) > 65535:
        raise RedisUrlError("a host of it cannot be read: each is HOST or HOST:PORT")
    return match[1].strip("[]"), int(match[2] or port)


def _database(text: str) -> str:
    if text and not text.isdigit():
        raise RedisUrlError(f"the database is not a number: {text!r}")
    return f"/{text}" if text else ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
