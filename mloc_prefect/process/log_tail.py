"""The end of a log file, for messages that say why something ended. Standard library only."""

from __future__ import annotations

from pathlib import Path

_WORDS_BYTES = 256 << 10  # of the end of a log: where its last words are looked for


def log_tail(path: str | Path, *, lines: int = 40, limit: int = 8192) -> str:
    """Return the last lines of a log: at most `lines` lines and `limit` bytes, "" when there is none."""
    try:
        with Path(path).open("rb") as handle:
            end = handle.seek(0, 2)
            handle.seek(max(0, end - limit))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def last_words(path: Path, count: int = 1) -> list[str]:
    """Return the last `count` lines of a log that are not blank, stripped; fewer when it has fewer."""
    lines = log_tail(path, lines=_WORDS_BYTES, limit=_WORDS_BYTES).splitlines()
    return [line.strip() for line in lines if line.strip()][-count:]


def last_line(path: Path) -> str:
    """Return the last line of a log that is not blank, or the sentence that there is none."""
    return next(iter(last_words(path)), "it wrote nothing")
