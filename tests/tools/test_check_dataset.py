import json
import subprocess
from pathlib import Path

import pytest
from fuzzing import write_sound_set

from vis_d2.tools import check_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sound_set(tmp_path / "ytvis_2019")


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _run(folder: Path, *options) -> int:
    frames = str(folder / "train" / "JPEGImages")
    return check_dataset.main([str(folder / "train.json"), "--images", frames, *options])


@pytest.mark.parametrize("options", [[], ["--fast"], ["--workers", "1"]])
def test_a_sound_set(folder, capsys, options):
    assert _run(folder, *options) == 0
    text = capsys.readouterr().out
    assert "    1       4       6      12  cat" in text
    assert "4 videos, 12 frames, 12 tracks, 24 masks" in text
    assert text.splitlines()[-1].endswith("train.json: 0 errors, 0 warnings")


def test_warnings_do_not_fail(folder, capsys):
    _edit(folder / "train.json", lambda c: c["annotations"][0].update(id=0))
    assert _run(folder) == 0
    text = capsys.readouterr().out
    assert "warning: id-0: 1 " in text and "    video 1, track 0: the id is 0" in text
    assert "0 errors, 1 warnings" in text


def test_errors_fail_and_are_capped(folder, capsys):
    for path in sorted((folder / "train/JPEGImages").glob("*/*.png"))[:7]:
        path.unlink()
    assert _run(folder) == 1
    text = capsys.readouterr().out
    assert "error: missing-frame: 7 " in text and "... and 2 more" in text
    assert "video 1, frame 0: '" in text and "7 errors, 0 warnings" in text
    assert _run(folder, "--all") == 1
    assert "more" not in capsys.readouterr().out


def test_the_report_holds_everything(folder, tmp_path):
    for path in sorted((folder / "train/JPEGImages").glob("*/*.png"))[:7]:
        path.unlink()
    report = tmp_path / "report.json"
    assert _run(folder, "--json", str(report)) == 1
    content = json.loads(report.read_text())
    assert content["counts"] == {"missing-frame": 7} and len(content["findings"]) == 7
    assert content["findings"][0]["video"] == 1 and content["findings"][0]["frame"] == 0
    assert content["statistics"]["tracks"] == 12


def test_without_frames_it_says_so(folder, capsys):
    assert check_dataset.main([str(folder / "train.json")]) == 0
    assert "frames were not looked at" in capsys.readouterr().out


def test_it_says_where_the_frames_are_instead(folder, capsys):
    assert check_dataset.main([str(folder / "train.json"), "--images", str(folder)]) == 1
    assert f"--images {folder}/train/JPEGImages" in capsys.readouterr().out


def test_a_known_set_elsewhere_gets_the_commands(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    _edit(folder / "train.json", lambda c: c["categories"][0].update(name="sedan"))
    assert _run(folder) == 0
    text = capsys.readouterr().out
    assert "by the name ytvis_2019_train" in text
    commands = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    subprocess.run(["sh", "-ec", commands.split("cat\n")[-1].split("dog\n")[-1]], check=True)
    assert (tmp_path / "root/ytvis_2019/train/JPEGImages/v1/0.png").is_file()
    assert _run(folder) == 0
    assert "by the name" not in capsys.readouterr().out


def test_a_folder_is_surveyed(folder, capsys):
    assert check_dataset.main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert f"train  {folder}/train.json" in text
    assert f"val    - (expected {folder}/valid.json)" in text
    assert f"check-dataset {folder}/train.json --images {folder}/train/JPEGImages" in text
    (folder / "train" / "JPEGImages").rename(folder / "train" / "Frames")
    assert check_dataset.main([str(folder)]) == 1
    assert f"ln -s {folder}/train/Frames {folder}/train/JPEGImages" in capsys.readouterr().out
    assert check_dataset.main([str(folder / "train")]) == 1


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json; beside it: .*train.json"):
        check_dataset.main([str(folder / "none.json")])
    with pytest.raises(FileNotFoundError, match="--images"):
        check_dataset.main([str(folder / "train.json"), "--images", str(tmp_path / "none")])


def test_odd_names_can_be_printed(folder, capsys):
    _edit(folder / "train.json", lambda c: c["categories"][0].update(name="\x1b[31m\ud800"))
    assert _run(folder) == 0
    assert "\x1b" not in capsys.readouterr().out
