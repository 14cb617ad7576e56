"""``vis-d2 <tool> ...``: finds the tool and runs it.

Imports the standard library only, so that help does not have to wait for torch.
"""

import ast
import difflib
import importlib
import os
import select
import sys
from pathlib import Path
from typing import Dict, List, Optional

_PACKAGE = Path(__file__).resolve().parent


def tools() -> Dict[str, str]:
    """Name of each tool and the first line of its docstring, read without importing anything."""
    found = {}
    for path in sorted((_PACKAGE / "tools").glob("[a-z]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
        found[path.stem.replace("_", "-")] = doc.partition("\n")[0]
    return found


def main(argv: Optional[List[str]] = None) -> int:
    """Run a tool and return its exit code: 1 after an error in its input, 2 for a wrong command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known = tools()
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:18s} {line}" for name, line in known.items()]
        print("usage: vis-d2 TOOL ... [--debug]   (vis-d2 TOOL --help: its options)\n")
        print("\n".join(lines))
        return 0
    if argv[0] == "--version":
        text = (_PACKAGE / "__init__.py").read_text(encoding="utf8")
        print("vis_d2", text.partition('__version__ = "')[2].partition('"')[0])
        return 0
    if argv[0] not in known:
        near = difflib.get_close_matches(argv[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "vis-d2 --help lists the tools"
        print(f"vis-d2: error: there is no tool {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    return _run(argv[0], [arg for arg in argv[1:] if arg != "--debug"], "--debug" in argv)


def _run(tool: str, argv: List[str], debug: bool) -> int:
    try:
        if {"-h", "--help"} & set(argv):  # some tools take seconds to import
            quick = importlib.import_module("vis_d2.tools._options").PARSERS.get(tool)
            if quick is not None:
                quick().print_help()
                return 0
        code = importlib.import_module("vis_d2.tools." + tool.replace("-", "_")).main(argv) or 0
        sys.stdout.flush()  # here, where an error is noticed
        return code
    except (ValueError, LookupError, AssertionError, ImportError, OSError) as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        # The text of a KeyError is its argument in quotes.
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"vis-d2 {tool}: error: {text}\n(--debug shows where)", file=sys.stderr)
        return 1


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed, as by ``| head``; silences it then."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a file at all
        return False
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    sys.stdout = open(os.devnull, "w", encoding="utf8")
    return True


if __name__ == "__main__":
    sys.exit(main())
