import os
import subprocess
import sys
from pathlib import Path

import pytest

from vis_d2 import cli
from vis_d2.tools import _options

ROOT = Path(__file__).resolve().parents[2]
NEED_NO_TORCH = (
    "analyze", "check-dataset", "check-results", "convert", "draw", "evaluate", "export", "split",
)  # fmt: skip


@pytest.mark.parametrize("tool", sorted(cli.tools()))
def test_help_has_an_example_and_is_there_at_once(tool):
    """In a process of its own: without torch, and so in well under a second of work."""
    code = (
        "import sys\nsys.argv[0] = 'vis-d2'\nfrom vis_d2.cli import main\n"
        f"try: main([{tool!r}, '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'detectron2', 'matplotlib'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = os.times()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    after = os.times()
    assert run.returncode == 0, run.stderr
    assert "example" in run.stdout and f"vis-d2 {tool} " in run.stdout.partition("example")[2]
    work = after.children_user + after.children_system
    assert work - before.children_user - before.children_system < 1.0


def test_every_tool_is_known_here():
    assert set(_options.PARSERS) | {*NEED_NO_TORCH, "benchmark-evaluation"} == set(cli.tools())


@pytest.mark.parametrize("tool", sorted(_options.PARSERS))
def test_a_required_option_that_is_missing_is_named(tool, capsys):
    with pytest.raises(SystemExit):
        _options.PARSERS[tool]().parse_args([])
    assert "--config-file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "360", "0x5", "axb"])
def test_a_size_is_height_and_width(text):
    with pytest.raises(Exception, match="expected HEIGHTxWIDTH"):
        _options.frame_size(text)
    assert _options.frame_size("360X640") == (360, 640)


@pytest.mark.parametrize("text", ["-0.1", "1.1", "nan", "x"])
def test_a_score_is_from_0_to_1(text):
    with pytest.raises(Exception, match="expected a score from 0 to 1"):
        _options.score(text)
    assert _options.score("0.25") == 0.25
