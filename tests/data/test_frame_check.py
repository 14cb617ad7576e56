import os

import pytest
from PIL import Image

from vis_d2.data.dataset_statistics import CheckedVideo
from vis_d2.data.findings import Findings
from vis_d2.data.frame_check import check_frames

VIDEO = CheckedVideo(10, 24, 32, [f"first/{t}.png" for t in range(3)])


def _found(folder, video=VIDEO, **options):
    findings = Findings()
    assert check_frames([video], str(folder), findings, **options) == len(video.file_names)
    return [(finding.kind, finding.frame) for finding in findings]


@pytest.mark.parametrize("fast", [False, True])
def test_sound_frames(frames, fast):
    assert _found(frames, fast=fast) == []


def test_each_bad_frame_is_found_in_order(frames):
    (frames / "first/0.png").unlink()
    (frames / "first/1.png").write_bytes(b"no picture")
    Image.new("RGB", (24, 32)).save(frames / "first/2.png")
    expected = [("missing-frame", 0), ("unreadable-frame", 1), ("frame-size", 2)]
    assert _found(frames, workers=2) == expected


def test_a_file_that_was_cut_off_needs_the_whole_file(frames):
    path = frames / "first/1.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert _found(frames) == [("unreadable-frame", 1)]
    assert _found(frames, fast=True) == []


def test_a_turned_picture_has_the_size_after_turning(frames):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 32)).save(frames / "first/0.jpg", exif=exif)
    assert _found(frames, CheckedVideo(1, 24, 32, ["first/0.jpg"])) == []


def test_a_pipe_does_not_stop_the_check(frames):
    os.mkfifo(frames / "first/3.png")
    names = ["first/3.png", "first", "a\0b", "\ud800"]
    found = _found(frames, CheckedVideo(1, 24, 32, names))
    assert found == [("missing-frame", t) for t in range(4)]
