"""Shared by all tests: seeds and the toy data set."""

import logging
import os
import random
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the suite runs one process per core


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Tools write their logs to the standard output of their test, which is closed afterwards."""
    loggers = [logging.getLogger(name) for name in ("vis_d2", "detectron2", "fvcore")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before):
        logger.handlers[:] = handlers
        logger.propagate = True


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set, in a folder of its own that all workers of a run share."""
    from vis_d2.data.datasets.toy import write_toy

    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    return write_toy(shared / "datasets" / "toy")


@pytest.fixture
def toy_datasets(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points DETECTRON2_DATASETS at a folder that holds the toy data set."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root.parent))
    return toy_root.parent
