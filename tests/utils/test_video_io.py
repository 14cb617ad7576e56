from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from vis_d2.utils.video_io import ArrayFrames, FrameFolder, VideoFile, open_source


def frame(value, height=16, width=24):
    """A frame whose brightness tells its number."""
    return np.full((height, width, 3), value, dtype=np.uint8)


def write_image(path, image):
    Image.fromarray(image[:, :, ::-1].copy()).save(path)
    return path


def write_video(path, values, rate=Fraction(25), size=(48, 64)):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for value in values:
            picture = av.VideoFrame.from_ndarray(frame(value, *size), format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    for number, value in ((10, 30), (2, 20), (1, 10)):
        write_image(tmp_path / f"f{number}.png", frame(value))
    (tmp_path / "notes.txt").write_text("not a frame")
    return tmp_path


def test_a_folder_is_read_in_natural_order_and_can_be_read_again(folder):
    with open_source(folder) as source:
        assert isinstance(source, FrameFolder)
        assert (source.height, source.width, source.num_frames, source.fps) == (16, 24, 3, 25.0)
        assert source.name == str(folder)
        for _ in range(2):
            assert [int(f[0, 0, 0]) for f in source] == [10, 20, 30]
        assert source.rereadable


def test_a_glob_takes_only_what_matches(folder):
    assert len(list(open_source(str(folder / "f1*.png")))) == 2


def test_one_image_is_a_video_of_one_frame(folder):
    assert open_source(folder / "f2.png").num_frames == 1


def test_frames_come_as_bgr_with_the_turn_of_the_camera_applied(tmp_path):
    rgb = np.zeros((10, 20, 3), dtype=np.uint8)
    rgb[..., 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn clockwise to show"
    Image.fromarray(rgb).save(tmp_path / "0.png", exif=exif)
    (only,) = open_source(tmp_path)
    assert only.shape == (20, 10, 3)
    assert only[0, 0].tolist() == [0, 0, 200]


def test_a_palette_image_becomes_color(tmp_path):
    Image.new("P", (8, 6), 3).save(tmp_path / "0.png")
    assert next(iter(open_source(tmp_path))).shape == (6, 8, 3)


def test_grey_images_of_16_bits_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(ramp).save(tmp_path / "0.png")
    (only,) = open_source(tmp_path)
    assert only.dtype == np.uint8 and np.array_equal(only, np.stack([ramp >> 8] * 3, axis=2))


def test_frames_are_decoded_only_when_asked_for(folder, monkeypatch):
    read = []
    original = FrameFolder._read
    monkeypatch.setattr(FrameFolder, "_read", lambda *a: read.append(a[1]) or original(*a))
    iterator = iter(open_source(folder))
    assert read == [0]  # the look at the first frame
    next(iterator)
    next(iterator)
    assert read == [0, 0, 1]


def test_a_broken_frame_is_named_with_index_and_path(folder):
    broken = folder / "f2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"frame 1 cannot be read from .*f2\.png") as error:
        list(open_source(folder))
    assert str(folder) in str(error.value)


def test_a_frame_that_vanishes_is_named(folder):
    source = open_source(folder)
    (folder / "f10.png").unlink()
    with pytest.raises(ValueError, match=r"frame 2 cannot be read from .*f10\.png"):
        list(source)


def test_a_frame_of_another_size_is_named_with_both_sizes(folder):
    write_image(folder / "f2.png", frame(5, 8, 24))
    with pytest.raises(ValueError, match=r"frame 1 \(.*f2\.png\) is 8x24 .*16x24"):
        list(open_source(folder))


def test_an_empty_folder_says_what_it_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no frame found, expected \.jpg"):
        open_source(tmp_path)


def test_a_path_that_leads_nowhere():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4: no such video"):
        open_source("nowhere.mp4")


def test_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"these are no pictures" * 50)
    with pytest.raises(ValueError, match=r"film\.mp4: cannot be opened as a video"):
        open_source(path)


def test_a_file_with_sound_only(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="holds no video stream"):
        open_source(path)


def test_a_video_file_gives_frames_rate_and_length(tmp_path):
    rate = Fraction(30000, 1001)
    path = write_video(tmp_path / "clip.mp4", range(0, 250, 10), rate)
    with open_source(path) as source:
        assert isinstance(source, VideoFile)
        assert (source.height, source.width, source.num_frames) == (48, 64, 25)
        assert source.fps == pytest.approx(float(rate))
        for _ in range(2):
            values = [int(f.mean()) for f in source]
            assert np.abs(np.subtract(values, range(0, 250, 10))).max() < 8


def test_a_lying_phone_video_is_turned(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", [50, 60])

    class Turned:
        rotation = -90

        def to_ndarray(self, format):
            image = frame(0, 48, 64)
            image[0] = 255
            return image

    class Container:
        def __init__(self, real):
            self.streams = real.streams

        def decode(self, video):
            return [Turned()]

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    original = VideoFile._open
    monkeypatch.setattr(VideoFile, "_open", lambda self: Container(original(self)))
    source = open_source(path)
    assert (source.height, source.width) == (64, 48)
    (only,) = source
    assert (only[:, -1] == 255).all() and (only[:, 0] == 0).all()  # clockwise: top becomes right


def test_a_list_of_arrays_can_be_read_again_a_generator_only_once():
    frames = [frame(i) for i in range(4)]
    source = open_source(frames)
    assert isinstance(source, ArrayFrames) and source.num_frames == 4 and source.rereadable
    assert len(list(source)) == len(list(source)) == 4
    once = open_source(f for f in frames)
    assert once.num_frames is None and not once.rereadable
    assert [int(f[0, 0, 0]) for f in once] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="only once"):
        list(once)


def test_a_generator_is_never_read_ahead():
    made = []

    def generate():
        for i in range(100):
            made.append(i)
            yield frame(i)

    iterator = iter(open_source(generate()))
    next(iterator)
    next(iterator)
    assert made == [0, 1]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frame"),
        ([np.zeros((4, 4), np.uint8)], r"frame 0 must be .*shape \(4, 4\)"),
        ([np.zeros((4, 4, 3))], "float64"),
        ([frame(0), "frame"], "frame 1 must be .*got str"),
        ([frame(0), frame(0, 9, 9)], "frame 1 is 9x9"),
    ],
)
def test_arrays_that_are_no_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        list(open_source(frames))


@pytest.mark.parametrize("source", [None, True, 2.5])
def test_things_that_are_no_source(source):
    with pytest.raises(TypeError, match="cannot be"):
        open_source(source)


def test_an_open_source_is_returned_and_the_rate_can_be_set(folder):
    source = open_source(folder, fps=12)
    assert source.fps == 12.0
    assert open_source(source) is source
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be > 0"):
            open_source(folder, fps=fps)


class FakeCapture:
    def __init__(self, index):
        self.frames = [frame(i) for i in range(3)] if index == 0 else []
        self.released = 0

    def isOpened(self):
        return bool(self.frames)

    def get(self, key):
        return 15.0

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self):
        self.released += 1


@pytest.mark.parametrize("index", [0, "0"])
def test_a_camera_gives_every_frame_once_and_is_released(index, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with open_source(index) as source:
        assert (source.name, source.fps, source.num_frames) == ("camera 0", 15.0, None)
        assert [int(f[0, 0, 0]) for f in source] == [0, 1, 2]
    assert source._capture.released == 1


def test_closing_releases_a_camera_that_is_still_running(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with open_source(0) as source:
        next(iter(source))
    assert source._capture.released == 1


def test_a_camera_that_is_not_there(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with pytest.raises(ValueError, match="camera 3: cannot be opened"):
        open_source(3)


def test_a_stream_that_nobody_serves():
    with pytest.raises(ValueError, match="rtsp://127.0.0.1:9/x: cannot be opened"):
        open_source("rtsp://127.0.0.1:9/x")


def test_a_network_stream_is_opened_once_and_read_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", [10, 20, 30])
    opened = []
    original = av.open

    def fake_open(url, **kwargs):
        opened.append(url)
        return original(str(path), **kwargs)

    monkeypatch.setattr(av, "open", fake_open)
    with open_source("http://camera.local/live") as source:
        assert not source.rereadable and source.num_frames is None
        assert len(list(source)) == 3
    assert opened == ["http://camera.local/live"]
