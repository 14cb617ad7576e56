import numpy as np
from PIL import Image

from vis_d2.visualization.frame_files import FrameFiles


def test_frames_become_files_of_their_names(tmp_path):
    with FrameFiles(tmp_path / "a" / "clip", ["x", "00007"]) as files:
        for value in (0, 200):
            files.write(np.full((4, 6, 3), (value, 10, 20), np.uint8))
    assert files.num_frames == 2
    with Image.open(tmp_path / "a" / "clip" / "00007.png") as image:
        assert image.size == (6, 4) and image.getpixel((0, 0)) == (20, 10, 200)  # BGR in
    assert (tmp_path / "a" / "clip" / "x.png").is_file()
