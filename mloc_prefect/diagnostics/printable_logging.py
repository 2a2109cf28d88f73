"""Lines of logs without control characters, also of libraries and their own handlers."""

from __future__ import annotations

import logging

from mloc_prefect.diagnostics.printable import printable


class PrintableLogRecord(logging.LogRecord):
    """A log record whose message has control characters as escapes."""

    def getMessage(self) -> str:  # noqa: N802 - the name that `logging` calls
        """Return the message."""
        return printable(super().getMessage())


class PrintableFormatter(logging.Formatter):
    """A formatter whose tracebacks have control characters as escapes, too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole text of a record."""
        return printable(super().format(record))


def log_printable() -> None:
    """Make all further log records of this process printable, whichever handler shows them."""
    logging.setLogRecordFactory(PrintableLogRecord)
