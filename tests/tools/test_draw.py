import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vis_d2 import cli
from vis_d2.structures import VideoInstances
from vis_d2.utils.colors import identity_color

HEIGHT, WIDTH, LENGTH = 32, 48, 3


def mask(x):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[8:20, x : x + 8] = 1
    found = coco_mask.encode(pixels)
    return {"size": found["size"], "counts": found["counts"].decode()}


def tube(x):
    return [mask(x + t) for t in range(LENGTH)]


@pytest.fixture
def folder(tmp_path):
    """Two videos, "a" with two objects, "b" with none; results for "a"."""
    videos = []
    for number, name in enumerate("ab", start=1):
        (tmp_path / "frames" / name).mkdir(parents=True)
        files = [f"{name}/{t}.png" for t in range(LENGTH)]
        for file in files:
            Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(tmp_path / "frames" / file)
        size = {"height": HEIGHT, "width": WIDTH, "length": LENGTH}
        videos.append({"id": number, "file_names": files, **size})
    common = {"video_id": 1, "iscrowd": 0}
    annotations = [
        {"id": 7, "category_id": 2, "segmentations": tube(2), **common},
        {"id": 8, "category_id": 3, "segmentations": tube(30), **common},
    ]
    categories = [{"id": 3, "name": "dog"}, {"id": 2, "name": "cat"}]
    content = {"videos": videos, "categories": categories, "annotations": annotations}
    results = [
        {"video_id": 1, "score": s, "category_id": c, "segmentations": tube(x)}
        for s, c, x in ((0.9, 3, 30), (0.1, 2, 15), (0.8, 2, 2))
    ]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "r.json").write_text(json.dumps(results))
    return tmp_path


def draw(folder, file, *options, output="out"):
    argv = [str(folder / file), "--images", str(folder / "frames"), "--output"]
    argv += [str(folder / output), "--min-side", "0"]
    return cli.main(["draw", *argv, *(str(option) for option in options)])


def colors(path):
    with Image.open(path) as image:
        return {color for _, color in image.convert("RGB").getcolors(1 << 16)}


def rgb(track_id):
    return identity_color(track_id)[::-1]


def test_annotations_become_a_video_and_a_contact_sheet_each(folder, capsys):
    assert draw(folder, "gt.json") == 0
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "a.mp4", "a.png", "b.mp4", "b.png",
    ]  # fmt: skip
    with av.open(str(folder / "out" / "a.mp4")) as video:
        assert len(list(video.decode(video=0))) == LENGTH
        assert video.streams.video[0].codec_context.name == "h264"
    assert "a: 2 tracks in 3 frames" in capsys.readouterr().out


def test_png_frames_are_named_after_the_frames(folder):
    assert draw(folder, "gt.json", "--png", "--masks-only", "--video", "a") == 0
    assert sorted(p.name for p in (folder / "out" / "a").iterdir()) == ["0.png", "1.png", "2.png"]
    assert colors(folder / "out" / "a" / "1.png") == {(0, 0, 0), rgb(7), rgb(8)}
    assert not (folder / "out" / "b").exists()


def test_one_class(folder):
    assert draw(folder, "gt.json", "--png", "--masks-only", "--only-class", "dog") == 0
    assert colors(folder / "out" / "a" / "1.png") == {(0, 0, 0), rgb(8)}


def test_the_threshold_hides_and_says_so(folder, capsys):
    options = ("--gt", folder / "gt.json", "--png", "--masks-only", "--video", "1")
    assert draw(folder, "r.json", *options) == 0
    assert "1 results score below 0.3" in capsys.readouterr().out
    assert colors(folder / "out" / "a" / "0.png") == {(0, 0, 0), rgb(1), rgb(3)}
    assert draw(folder, "r.json", *options, "--threshold", 0) == 0
    assert rgb(2) in colors(folder / "out" / "a" / "0.png")


def test_compared_results_take_the_colours_of_the_truth(folder):
    options = ("--compare", folder / "gt.json", "--png", "--masks-only")
    assert draw(folder, "r.json", *options) == 0
    with Image.open(folder / "out" / "a" / "0.png") as image:
        picture = np.asarray(image.convert("RGB"))
    frames = picture[-HEIGHT:]
    assert picture.shape[1] > 2 * WIDTH
    assert (frames[:, :WIDTH] == frames[:, -WIDTH:]).all()
    assert tuple(frames[10, 4]) == rgb(7) and tuple(frames[10, 32]) == rgb(8)


def test_results_alone_with_a_folder_of_frames(folder):
    """What is left of a demo: results of one video, and the video."""
    argv = ["draw", str(folder / "r.json"), "--images", str(folder / "frames" / "a")]
    assert cli.main([*argv, "--output", str(folder / "v.mp4")]) == 0
    assert (folder / "v.mp4").is_file() and (folder / "v.png").is_file()


def test_masks_are_decoded_one_frame_at_a_time(folder, monkeypatch):
    decoded = []
    original = VideoInstances.frame
    monkeypatch.setattr(
        VideoInstances, "frame", lambda self, t: decoded.append(t) or original(self, t)
    )
    draw(folder, "gt.json", "--video", "a")
    assert decoded == [0, 1, 2]


def test_what_cannot_be_read_is_said_and_the_rest_drawn(folder, capsys):
    content = json.loads((folder / "gt.json").read_text())
    content["annotations"][0]["segmentations"][1] = {"size": [1, 1], "counts": "1"}
    (folder / "gt.json").write_text(json.dumps(content))
    assert draw(folder, "gt.json", "--png", "--masks-only") == 0
    error = capsys.readouterr().err
    assert "1 tracks cannot be drawn, first video 1, annotation 7, frame 1" in error
    assert colors(folder / "out" / "a" / "0.png") == {(0, 0, 0), rgb(8)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--video", "9"), "no video '9'"),
        (("--only-class", "cow"), "no class 'cow'; the classes are dog, cat"),
        (("--compare", "other.json"), "other.json"),
    ],
)
def test_wrong_options_are_one_line(options, message, folder, capsys):
    assert draw(folder, "gt.json", *options) == 1
    assert message in capsys.readouterr().err


def test_a_video_file_holds_one_video(folder, capsys):
    assert draw(folder, "gt.json", output="v.mp4") == 1
    assert "can hold one video, not 2" in capsys.readouterr().err
    assert draw(folder, "gt.json", "--video", "b", output="v.mp4") == 0
    assert (folder / "v.mp4").is_file()


def test_a_missing_frame_names_the_file(folder, capsys):
    (folder / "frames" / "a" / "1.png").unlink()
    assert draw(folder, "gt.json") == 1
    assert f"video a of {folder / 'gt.json'}, frame 1: there is no" in capsys.readouterr().err


def test_help_and_errors_do_not_wait_for_torch():
    code = (
        "import sys; sys.argv[0] = 'vis-d2'\n"
        "from vis_d2.cli import main\n"
        "assert main(['draw', 'none.json', '--images', '.', '--output', '.']) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
