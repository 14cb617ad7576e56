import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
import two_process

from vis_d2.engine.distributed import launch_job, wrap_model

ROOT = Path(__file__).resolve().parents[2]
QUICK_CONFIGS = sorted(str(path) for path in (ROOT / "configs" / "quick").glob("*.yaml"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """What two processes on the CPU, started by torchrun, report."""
    output = tmp_path_factory.mktemp("two") / "out.pth"
    paths = [str(ROOT), *sys.path]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, two_process.__file__, str(output), *QUICK_CONFIGS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def one() -> Dict[str, Dict[str, torch.Tensor]]:
    """The same steps on the joint batch, in this process."""
    return two_process.all_cases(QUICK_CONFIGS)


def assert_same_gradients(expected: two_process.Gradients, found: two_process.Gradients) -> None:
    assert set(expected) == set(found)
    for name, value in expected.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-4 * float(value.abs().max()) + 1e-7}
        torch.testing.assert_close(found[name], value, msg=name, **tolerance)


@pytest.mark.parametrize("objects", list(two_process.JOINT_BATCHES))
@pytest.mark.parametrize("model", ["stand-in", *QUICK_CONFIGS])
def test_two_processes_have_the_gradients_of_one_on_the_joint_batch(
    one: Any, two: Any, model: str, objects: str
) -> None:
    case = f"{model}, objects {objects}"
    assert_same_gradients(one[case], two["gradients"][case])


@pytest.mark.parametrize("model", two_process.clip_pair_configs(QUICK_CONFIGS))
def test_a_process_without_second_clips_waits_for_nobody(one: Any, two: Any, model: str) -> None:
    case = f"{model}, no second clip in one process"
    assert_same_gradients(one[case], two["gradients"][case])


def test_gradients_are_exchanged_once_per_step_when_they_accumulate(one: Any, two: Any) -> None:
    for name, expected in one["accumulated"].items():
        torch.testing.assert_close(two["gradients"]["accumulated"][name], expected)


def test_all_processes_stop_when_the_loss_of_one_is_not_finite(two: Any) -> None:
    first, second = two["messages"]
    assert first == second and "iteration 0: loss_object=nan" in first


def test_processes_know_their_place_on_the_machine(two: Any) -> None:
    assert [tuple(place) for place in two["local"]] == [(0, 2), (1, 2)]


def test_one_process_needs_no_group() -> None:
    model = torch.nn.Linear(1, 1)
    assert wrap_model(model) is model
    args = argparse.Namespace(num_gpus=1, num_machines=1)
    assert launch_job(lambda given: given, args) is args
    assert not torch.distributed.is_initialized()
