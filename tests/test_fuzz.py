"""Broken files never cause anything but a clean error or a result; see ``fuzzing.py``.

``VIS_D2_FUZZ_CASES=2000 python -m pytest tests/test_fuzz.py`` runs more of them.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest

CASES = int(os.environ.get("VIS_D2_FUZZ_CASES", "200"))
PER_PROCESS = 500


@pytest.mark.parametrize("first", range(0, CASES, PER_PROCESS))
def test_broken_files_are_clean_errors(first):
    """In a process of its own: a mask that gets past the checks would end or hang it."""
    last = min(first + PER_PROCESS, CASES)
    command = [sys.executable, fuzzing.__file__, str(first), str(last)]
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == f"cases {first} to {last}: 0 faults"


def test_cases_are_the_same_everywhere(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in (0, 7, 31):
            fuzzing.write_case(number, tmp_path / folder)
    for name in ("gt.json", "results.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_most_cases_are_json_and_nearly_all_are_changed(tmp_path):
    sound = [json.dumps(content).encode() for content in fuzzing.sound_files()]
    parsed = changed = 0
    for number in range(60):
        fuzzing.write_case(number, tmp_path)
        data = [(tmp_path / name).read_bytes() for name in ("gt.json", "results.json")]
        changed += data != sound
        try:
            parsed += all(isinstance(json.loads(text), (dict, list)) for text in data)
        except (ValueError, RecursionError):
            pass
    assert changed >= 50 and parsed >= 40


def test_a_fault_would_be_noticed():
    def fails(error):
        def target():
            raise error

        return fuzzing.run_target(target)[1]

    assert fails(KeyError("segmentations")).startswith("KeyError")
    assert fails(TypeError("x.json")).startswith("TypeError")
    assert "says" in fails(ValueError("")) and "does not say where" in fails(ValueError("bad"))
    assert fails(ValueError("a.json: bad")) == ""
    assert fuzzing.run_target(lambda: 3)[1] == "exit code 3"
    assert fuzzing.run_target(lambda: 1) == ("1", "")
    content = fuzzing.sound_files()[0]
    fuzzing.mutate(content, random.Random(0))
    assert content != fuzzing.sound_files()[0]
