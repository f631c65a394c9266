"""Logs: messages of the service in words, one JSON line a request, all on stderr."""

import logging
import sys

words = logging.getLogger("mosa_deploy.serving")


def configure() -> None:
    """Let the service's loggers speak, whatever the server's configuration does with others."""
    text = logging.StreamHandler(sys.stderr)
    text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    lines = logging.StreamHandler(sys.stderr)
    for name, handler in (("mosa_deploy.serving", text), ("mosa_deploy.requests", lines)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
