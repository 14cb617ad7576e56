import numpy as np
import pytest
from PIL import Image

from vis_d2.utils.video_writer import VideoWriter
from vis_d2.visualization.frame_source import FPS, open_frames

SIZE = (24, 32)
NAMES = ["clip/b.png", "clip/a.png", "clip/10.png"]  # not in the order of the names


@pytest.fixture
def images(tmp_path):
    (tmp_path / "root" / "clip").mkdir(parents=True)
    for value, name in enumerate(NAMES):
        Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(tmp_path / "root" / name)
    return tmp_path / "root"


def opened(images, names=NAMES, size=SIZE, num_frames=3, **options):
    return open_frames(str(images), names, size, num_frames=num_frames, name="clip", **options)


def test_frames_come_in_the_order_of_the_file(images):
    source = opened(images)
    assert [int(frame[0, 0, 0]) for frame in source] == [0, 1, 2]
    assert source.fps == FPS and source.num_frames == 3
    assert opened(images, fps=5).fps == 5


def test_a_folder_of_one_video_needs_no_names(images):
    source = opened(images / "clip", None)
    assert [int(frame[0, 0, 0]) for frame in source] == [2, 1, 0]  # 10, a, b


def test_a_video_file(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 12, SIZE) as writer:
        for _ in range(3):
            writer.write(np.zeros((*SIZE, 3), np.uint8))
    for names in (None, NAMES):
        source = opened(tmp_path / "v.mp4", names)
        assert source.fps == 12 and len(list(source)) == 3


def test_a_missing_frame_is_named_with_the_number_of_them(images):
    (images / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"video clip, frame 1: .*a.png' \(1 of 3 frames"):
        opened(images)


def test_the_folder_that_was_meant_is_found(images):
    with pytest.raises(FileNotFoundError, match=f"it is there with --images {images}"):
        opened(images.parent)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        opened(images / "nowhere")


def test_frames_that_do_not_fit_the_masks(images):
    with pytest.raises(ValueError, match=r"24x32 \(height x width\), but the masks are for 32x24"):
        opened(images, size=(32, 24))
    with pytest.raises(ValueError, match="has 3 frames, but the masks are for 2"):
        opened(images / "clip", None, num_frames=2)
    with pytest.raises(ValueError, match="video clip: .*root: no frame found"):
        opened(images, None)
    with pytest.raises(ValueError, match="has no frames"):
        opened(images, [], num_frames=0)


def test_a_broken_frame_is_named(images):
    (images / NAMES[2]).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"frame 2 cannot be read from .*10\.png"):
        list(opened(images))
