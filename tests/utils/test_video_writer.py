import logging
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vis_d2.utils import video_writer
from vis_d2.utils.video_io import open_source
from vis_d2.utils.video_writer import VideoWriter

SIZE = (32, 48)
COLOR = (30, 200, 90)  # BGR; BT.601 read as BT.709 would move it by more than 10


def frame(color=COLOR, size=SIZE):
    return np.full((*size, 3), color, dtype=np.uint8)


def write(path, count=5, fps=25, size=SIZE):
    with VideoWriter(path, fps, size) as writer:
        for _ in range(count):
            writer.write(frame(size=size))
    return writer


def probe(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video=0))
        context = stream.codec_context
        return frames, stream.average_rate, context.name, context.pix_fmt


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (25, Fraction(25)),
        (29.97002997, Fraction(30000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_h264_at_the_exact_rate(tmp_path, fps, rate):
    writer = write(tmp_path / "out.mp4", 7, fps)
    assert probe(writer.path) == (7, rate, "h264", "yuv420p")
    assert writer.num_frames == 7


def test_the_index_stands_before_the_pictures(tmp_path):
    """Browsers start to play before the file has come in whole only then."""
    data = write(tmp_path / "out.mp4").path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_colors_survive(tmp_path):
    for got in open_source(write(tmp_path / "out.mp4").path):
        assert np.abs(got.astype(int) - frame()).max() <= 4


def test_an_extension_is_added_and_folders_are_made(tmp_path):
    writer = write(tmp_path / "new" / "folder" / "out")
    assert writer.path == tmp_path / "new" / "folder" / "out.mp4"
    assert writer.path.is_file()


@pytest.mark.parametrize("name", ["out.gif", "frame.png", "out.v2"])
def test_what_is_no_video_is_refused_and_not_touched(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name}: expected a name that ends in .mp4, "):
        VideoWriter(tmp_path / name, 25, SIZE)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_places_that_cannot_be_written_to_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/out.mp4: its folder cannot be made"):
        VideoWriter(tmp_path / "file" / "out.mp4", 25, SIZE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: this is a folder, expected .*folder/out.mp4"):
        VideoWriter(tmp_path / "folder", 25, SIZE)
    # For the superuser every folder can be written to.
    monkeypatch.setattr(video_writer.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="out.mp4: its folder .* cannot be written to"):
        VideoWriter(tmp_path / "out.mp4", 25, SIZE)


@pytest.mark.parametrize("size", [(31, 48), (32, 47), (31, 47)])
def test_odd_sides_are_padded(tmp_path, size):
    source = open_source(write(tmp_path / "out.mp4", size=size).path)
    assert (source.height, source.width) == SIZE


def test_frames_of_another_kind_are_refused(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 25, SIZE) as writer:
        writer.write(frame())
        with pytest.raises(ValueError, match=r"frame 1 is uint8 \(9, 9, 3\), expected .*32, 48, 3"):
            writer.write(frame(size=(9, 9)))
        with pytest.raises(ValueError, match="float32"):
            writer.write(frame().astype(np.float32))


@pytest.mark.parametrize(("fps", "size"), [(0, SIZE), (-1, SIZE), (25, (0, 48))])
def test_impossible_videos_are_refused(tmp_path, fps, size):
    with pytest.raises(ValueError, match="fps > 0 and a size > 0"):
        VideoWriter(tmp_path / "out.mp4", fps, size)


def test_what_was_written_before_an_exception_can_be_played(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", 25, SIZE) as writer:
        for _ in range(3):
            writer.write(frame())
        raise KeyboardInterrupt
    assert probe(writer.path)[0] == 3


def test_a_video_without_frames_leaves_no_file(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "out.mp4", 0)
    assert list(tmp_path.iterdir()) == []
    assert "no frame" in caplog.text


def test_an_encoder_that_is_missing_is_passed_over(tmp_path, monkeypatch):
    encoders = ("no_such_encoder", *video_writer.ENCODERS)
    monkeypatch.setattr(video_writer, "ENCODERS", encoders)
    assert probe(write(tmp_path / "out.mp4").path)[2] == "h264"


def test_mpeg4_says_that_browsers_cannot_play_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video_writer, "ENCODERS", ("no_such_encoder", "mpeg4"))
    with caplog.at_level(logging.WARNING):
        writer = write(tmp_path / "out.mp4")
    assert probe(writer.path)[2] == "mpeg4"
    assert "browsers cannot" in caplog.text


def test_without_any_encoder_frames_become_png_files(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video_writer, "ENCODERS", ("no_such_encoder",))
    with caplog.at_level(logging.WARNING):
        writer = write(tmp_path / "out.mp4", 4)
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # one message
    assert str(writer.path) in caplog.text
    assert writer.path == tmp_path / "out_frames"
    assert sorted(p.name for p in writer.path.iterdir()) == [f"00000{i}.png" for i in range(4)]
    assert np.asarray(Image.open(writer.path / "000000.png"))[0, 0].tolist() == [*COLOR[::-1]]
    assert not (tmp_path / "out.mp4").exists()
    write(tmp_path / "out.mp4", 2)
    assert len(list(writer.path.iterdir())) == 2  # frames of the longer, earlier run are gone
