"""dev/provide_detectron2.py: the edits, the wheel, the download, and when it does nothing."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import provide_detectron2
from edits import EDITS, Edit, EditError, apply_edits
from wheel_file import DIST_INFO, write_wheel


def edit(pattern: str, matches: int) -> Edit:
    return Edit("an-edit", "why", "package/**/*.py", pattern, "new", matches)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "package" / "sub").mkdir(parents=True)
    (tmp_path / "package" / "one.py").write_text("old = 1\n")
    (tmp_path / "package" / "sub" / "two.py").write_text("old, other = 2, 3\n")
    (tmp_path / "package" / "three.py").write_text("untouched = 4\n")
    return tmp_path


def test_an_edit_changes_its_files_and_leaves_its_name(sources: Path) -> None:
    changed = apply_edits(sources, [edit(r"\bold\b", 2)])
    assert {path.name for path in changed} == {"one.py", "two.py"}
    text = (sources / "package" / "one.py").read_text()
    assert text.startswith("new = 1\n") and "an-edit" in text.splitlines()[-1]
    assert (sources / "package" / "three.py").read_text() == "untouched = 4\n"


@pytest.mark.parametrize("pattern, found", [("missing", 0), (r"\bold\b", 2)])
def test_an_edit_that_matches_differently_fails_loudly(
    sources: Path, pattern: str, found: int
) -> None:
    with pytest.raises(EditError, match=f"'an-edit' matches {found} times .* expected 1"):
        apply_edits(sources, [edit(pattern, 1)])
    assert (sources / "package" / "one.py").read_text() == "old = 1\n"


def test_every_edit_refuses_other_sources(tmp_path: Path) -> None:
    for one in EDITS:
        with pytest.raises(EditError, match=f"'{one.name}' matches 0 times"):
            apply_edits(tmp_path, [one])


def test_the_installed_detectron2_names_its_edits() -> None:
    import detectron2
    from detectron2 import _C

    if not hasattr(_C, "DEFORM_CONV_ON_CPU"):
        pytest.skip("this detectron2 did not come from the provider")
    root = Path(detectron2.__file__).parent
    files = [path for path in root.rglob("*") if path.suffix in (".py", ".yaml")]
    last_lines = [path.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] for path in files]
    notes = " ".join(line for line in last_lines if line.startswith("# Changed after"))
    assert [one.name for one in EDITS if one.name not in notes] == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "detectron2").mkdir(parents=True)
    (root / "detectron2" / "__init__.py").write_text("__version__ = 'tiny'\n")
    (root / "LICENSE").write_text("a licence\n")
    return root


def test_the_wheel_is_reproducible_and_installable(package: Path, tmp_path: Path) -> None:
    wheel = write_wheel(package, tmp_path)
    content = wheel.read_bytes()
    (package / "detectron2" / "__init__.py").touch()
    assert write_wheel(package, tmp_path).read_bytes() == content

    with zipfile.ZipFile(wheel) as archive:
        record = archive.read(f"{DIST_INFO}/RECORD").decode()
        digest = hashlib.sha256(archive.read("detectron2/__init__.py")).digest()
        assert {line.split(",")[0] for line in record.split()} == set(archive.namelist())
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") in record

    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import detectron2 as d"
    command = [sys.executable, "-c", script + "; print(d.__version__)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "tiny\n"


def test_a_download_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "detectron2-cdo-0.5.tar.gz").write_bytes(b"not what was pinned")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(RuntimeError, match="could not download"):
        provide_detectron2.download(tmp_path)
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err.upper()


def test_nothing_happens_where_detectron2_is_importable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("must not build or install")

    monkeypatch.setattr(provide_detectron2, "build_wheel", forbidden)
    monkeypatch.setattr(provide_detectron2, "install", forbidden)
    assert provide_detectron2.main([]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_it_is_built_and_installed_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []
    monkeypatch.setattr(provide_detectron2, "importable", lambda: False)
    monkeypatch.setattr(provide_detectron2, "build_wheel", lambda folder: folder / "a.whl")
    monkeypatch.setattr(provide_detectron2, "install", installed.append)
    assert provide_detectron2.main([]) == 0
    assert [path.name for path in installed] == ["a.whl"]
