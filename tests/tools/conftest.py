"""Leaves the loggers as other tests expect them."""

import logging
from typing import Iterator

import pytest


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """A tool writes its log to the standard output of its test, which is closed afterwards."""
    loggers = [logging.getLogger(name) for name in ("vis_d2", "detectron2", "fvcore")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before):
        logger.handlers[:] = handlers
        logger.propagate = True
