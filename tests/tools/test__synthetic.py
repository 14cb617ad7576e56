import numpy as np
from detectron2.data.detection_utils import read_image

from vis_d2.data import load_ytvis_json
from vis_d2.tools._synthetic import synthetic_frames, write_frames, write_video_json


def test_frames_are_the_same_every_time_and_move():
    first, again = (list(synthetic_frames((24, 40), 4, 2)) for _ in range(2))
    assert [f.shape for f in first] == [(24, 40, 3)] * 4
    assert all((a == b).all() for a, b in zip(first, again))
    changed = (first[0] != first[1]).any(axis=2).sum()
    assert 0 < changed < 24 * 40 / 2  # the squares, not the background


def test_what_is_written_is_a_data_set(tmp_path):
    write_frames(tmp_path, (24, 40), 3, 1)
    write_video_json(tmp_path / "video.json", (24, 40), 3, ["dog", "cat"])
    (video,) = load_ytvis_json(str(tmp_path / "video.json"), str(tmp_path))
    assert (video["height"], video["width"], video["length"]) == (24, 40, 3)
    frames = [read_image(name, "BGR") for name in video["file_names"]]
    for got, wanted in zip(frames, synthetic_frames((24, 40), 3, 1)):
        assert np.abs(got.astype(int) - wanted).mean() < 25  # JPEG of noise
