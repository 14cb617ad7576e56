import gc
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from vis_d2.data import lazy_frames
from vis_d2.data.lazy_frames import LazyFrames, read_frame


def to_tensor(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.transpose(2, 0, 1).copy())


@pytest.fixture
def video(tmp_path):
    """A video of 12 frames; frame t is filled with the BGR colour (t, 2 t, 3 t)."""
    for t in range(12):
        Image.new("RGB", (6, 4), (3 * t, 2 * t, t)).save(tmp_path / f"{t:02d}.png")
    files = [str(tmp_path / f"{t:02d}.png") for t in range(12)]
    return {"video_id": 7, "file_names": files, "height": 4, "width": 6, "annotations": [[]] * 12}


@pytest.fixture
def reads(monkeypatch):
    """Counts how many frames have been decoded."""
    done = []

    def counted(video, t):
        done.append(t)
        return read_frame(video, t)

    monkeypatch.setattr(lazy_frames, "read_frame", counted)
    return done


def threads() -> int:
    return sum(t.name.startswith("LazyFrames") for t in threading.enumerate())


@pytest.mark.parametrize("prefetch", [0, 1, 3, 50])
def test_frames_come_once_and_in_order(video, reads, prefetch):
    frames = LazyFrames(video, to_tensor, prefetch)
    colours = [frame[:, 0, 0].tolist() for frame in frames]
    assert colours == [[t, 2 * t, 3 * t] for t in range(12)]
    assert reads == list(range(12))
    assert threads() == 0


def test_access_decodes_only_what_is_asked_for(video, reads):
    frames = LazyFrames(video, to_tensor, 4)
    assert len(frames) == 12 and reads == []
    assert frames[5][0, 0, 0] == 5 and frames[-1][0, 0, 0] == 11
    assert reads == [5, 11]
    with pytest.raises(IndexError):
        frames[12]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_decoding_stays_a_bounded_number_of_frames_ahead(video, reads, prefetch):
    iterator = iter(LazyFrames(video, to_tensor, prefetch))
    for t in range(4):
        next(iterator)
        time.sleep(0.02)
        assert t + 1 <= len(reads) <= t + 1 + prefetch
    iterator.close()


def test_frames_are_decoded_while_the_consumer_works(video, reads):
    iterator = iter(LazyFrames(video, to_tensor, 3))
    next(iterator)
    deadline = time.monotonic() + 60
    while len(reads) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert reads == [0, 1, 2, 3]
    iterator.close()


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_thread_ends_when_the_consumer_stops_early(video, leave):
    iterator = iter(LazyFrames(video, to_tensor, 3))
    next(iterator)
    assert threads() == 1
    if leave == "close":
        iterator.close()
    elif leave == "raise":
        with pytest.raises(RuntimeError):
            iterator.throw(RuntimeError())
    del iterator
    gc.collect()
    assert threads() == 0


def test_nothing_more_is_decoded_once_the_consumer_has_stopped(video, reads, monkeypatch):
    stopped = threading.Event()
    shutdown = lazy_frames.ThreadPoolExecutor.shutdown

    def stop(pool, *args, **kwargs):
        stopped.set()
        shutdown(pool, *args, **kwargs)

    def slow(frame):
        assert frame[0, 0, 0] == 0 or stopped.wait(60)
        return to_tensor(frame)

    monkeypatch.setattr(lazy_frames.ThreadPoolExecutor, "shutdown", stop)
    iterator = iter(LazyFrames(video, slow, 5))
    next(iterator)
    iterator.close()
    assert len(reads) <= 2  # the first, and the one that was under way


@pytest.mark.parametrize("prefetch", [0, 4])
def test_error_is_raised_where_the_frame_would_have_come(video, tmp_path, prefetch):
    (tmp_path / "03.png").write_bytes(b"no picture")
    seen = []
    with pytest.raises(OSError, match=r"video 7, frame 3 \(.*03\.png\): cannot be decoded"):
        for frame in LazyFrames(video, to_tensor, prefetch):
            seen.append(int(frame[0, 0, 0]))
    assert seen == [0, 1, 2] and threads() == 0


def test_can_be_sent_to_another_process_and_iterated_again(video):
    frames = pickle.loads(pickle.dumps(LazyFrames(video, to_tensor, 2)))
    assert [int(f[0, 0, 0]) for f in frames] == [int(f[0, 0, 0]) for f in frames] == [*range(12)]


def test_bad_frames_name_video_frame_and_path(video, tmp_path):
    (tmp_path / "01.png").unlink()
    with pytest.raises(OSError, match=r"video 7, frame 1 \(.*01\.png\): no such file"):
        read_frame(video, 1)
    content = (tmp_path / "02.png").read_bytes()
    (tmp_path / "02.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"video 7, frame 2 \(.*02\.png\): cannot be decoded"):
        read_frame(video, 2)
    Image.new("RGB", (4, 6)).save(tmp_path / "04.png")
    with pytest.raises(ValueError, match=r"frame 4 .*: the frame is 6x4 .*, .* for 4x6"):
        read_frame(video, 4)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16"])
def test_frames_of_any_colour_mode_become_bgr(video, tmp_path, mode):
    grey = np.array([[0, 255, 0, 255, 0, 255]] * 4, dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 256 + 7)
    else:
        image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "03.png")
    assert np.array_equal(read_frame(video, 3), np.stack([grey] * 3, axis=2))
