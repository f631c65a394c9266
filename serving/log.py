"""Logs on stderr: the service's messages in words, and one line of JSON per request."""

import logging
import sys

words = logging.getLogger("mosa_deploy.serving")


def configure() -> None:
    """Let the service's loggers write, however the server configures others."""
    text = logging.StreamHandler(sys.stderr)
    text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    lines = logging.StreamHandler(sys.stderr)
    for name, handler in (("mosa_deploy.serving", text), ("mosa_deploy.requests", lines)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
