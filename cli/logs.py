"""Logs of the services: one JSON object a line, to stderr."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

# What every record of the logging module has; anything else was given as a field.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``, and the fields given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII: nothing that a peer said can forge another line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {k: v for k, v in vars(record).items() if k not in _STANDARD}
        if fields:
            line["fields"] = fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json_lines(verbose: int) -> None:
    """Makes the process log as a service does: from INFO on, or all of it with ``-v``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
