import subprocess
import sys
import types
from pathlib import Path

import pytest

import vis_d2
from vis_d2 import cli

ROOT = Path(cli.__file__).resolve().parent.parent


@pytest.fixture
def tool(monkeypatch):
    """Puts a tool named "demo" in place of the real one; set ``run`` to what it should do."""
    module = types.ModuleType("vis_d2.tools.demo")
    module.run = lambda argv: 0
    module.main = lambda argv: module.run(argv)
    monkeypatch.setitem(sys.modules, "vis_d2.tools.demo", module)
    return module


def test_help_lists_every_tool_with_its_first_line(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("demo", "benchmark", "memory"):
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 3
    assert "_config" not in text and "__init__" not in text
    assert cli.main([]) == 0


def test_help_imports_neither_torch_nor_detectron2():
    """Which is what makes it answer at once."""
    code = (
        "import sys; sys.argv[0] = 'vis-d2'\n"
        "from vis_d2.cli import main; assert not main(['--help'])\n"
        "assert not {'torch', 'detectron2', 'numpy'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "benchmark" in run.stdout


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vis_d2 {vis_d2.__version__}\n"


@pytest.mark.parametrize(("typed", "hint"), [("demos", "demo?"), ("xyzzy", "--help")])
def test_an_unknown_tool(typed, hint, capsys):
    assert cli.main([typed]) == 2
    error = capsys.readouterr().err
    assert repr(typed) in error and hint in error


def test_arguments_and_exit_code_pass_through(tool):
    seen = []
    tool.run = lambda argv: seen.append(argv) or 7
    assert cli.main(["demo", "--input", "x.mp4", "--debug"]) == 7
    assert seen == [["--input", "x.mp4"]]
    tool.run = lambda argv: None
    assert cli.main(["demo"]) == 0


@pytest.mark.parametrize(
    "error", [ValueError("bad frame 3"), FileNotFoundError("bad frame 3"), KeyError("bad frame 3")]
)
def test_expected_errors_are_one_line_without_a_traceback(tool, error, capsys):
    def fail(argv):
        raise error

    tool.run = fail
    assert cli.main(["demo"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "vis-d2 demo: error: bad frame 3"
    assert "--debug" in lines[-1] and "Traceback" not in "".join(lines)
    with pytest.raises(type(error)):
        cli.main(["demo", "--debug"])


def test_programming_errors_keep_their_traceback(tool):
    def fail(argv):
        raise AttributeError("a bug")

    tool.run = fail
    with pytest.raises(AttributeError):
        cli.main(["demo"])


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_closed_pipe_is_no_error(flags):
    """``vis-d2 ... | head`` ends quietly."""
    code = (
        "import sys, types; from vis_d2 import cli; tool = types.ModuleType('x'); "
        "tool.main = lambda argv: [print(i) for i in range(10**5)] and 0; "
        "sys.modules['vis_d2.tools.demo'] = tool; sys.exit(cli.main(['demo']))"
    )
    command = [sys.executable, *flags, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as run:
        assert run.stdout.readline() == "0\n"
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait() == 1


def test_a_broken_pipe_to_another_program_is_an_error(tool, capsys):
    def fail(argv):
        raise BrokenPipeError("pipe")

    tool.run = fail
    assert cli.main(["demo"]) == 1 and "error: pipe" in capsys.readouterr().err
