"""Command lines on the pages exist, with the options they use, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from vis_d2 import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(ROOT.glob("docs/*.md"))


def commands(page: Path):
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "vis-d2" in words:
                yield words[words.index("vis-d2") + 1 :]


@pytest.fixture(scope="module")
def help_of():
    known = {}

    def text(tool, capsys):
        if tool not in known:
            with pytest.raises(SystemExit):
                cli.main([tool, "--help"])
            known[tool] = capsys.readouterr().out
        return known[tool]

    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page, help_of, capsys):
    for tool, *words in commands(page):
        assert tool in cli.tools(), f"{page.name}: there is no vis-d2 {tool}"
        options = {word for word in words if word.startswith("--")}
        missing = options - set(re.findall(r"--[\w-]+", help_of(tool, capsys)))
        assert not missing, f"{page.name}: vis-d2 {tool} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
