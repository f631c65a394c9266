"""The log, on stderr: one format for the service's lines, BentoML's and uvicorn's.

    2026-11-26T08:30:00.123Z INFO [birds] serving bundle 3f0c8b5a9d21, shared by onnxruntime-cpu fp32

The time is UTC. The brackets hold the tasks that a line is about, or `-`. A request's line ends with a JSON object.
"""

import logging
import sys
from datetime import UTC, datetime

words = logging.getLogger("mosa_deploy.serving")

SERVICE, REQUESTS = "mosa_deploy.serving", "mosa_deploy.requests"

SERVERS = ("bentoml", "circus", "uvicorn", "uvicorn.error", "py.warnings", "")
"""The loggers of the server around the app; the last one is the root."""


class LineFormatter(logging.Formatter):
    """Time, level, tasks and message."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback follows in lines of its own."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        task = getattr(record, "task", None) or "-"
        return f"{time} {record.levelname} [{task}] {super().format(record)}"


def configure() -> None:
    """Let all loggers write in one format, however the server has configured them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.captureWarnings(True)
    for name in (SERVICE, REQUESTS, *SERVERS):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    for name in (SERVICE, REQUESTS):
        logging.getLogger(name).setLevel(logging.INFO)
