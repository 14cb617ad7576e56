import json
import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

from vis_d2.inference import TrackletCollector, TrackScores, TrackSelection
from vis_d2.tools import demo
from vis_d2.utils import video_writer
from vis_d2.utils.colors import identity_color
from vis_d2.utils.video_io import VideoSource, open_source

SIZE = (96, 128)
SCORES = [0.9, 0.2]  # of the tracks 3 and 8, of classes 0 and 1
YAML = """
DATASETS:
  TRAIN: ("ytvis_2019_train",)
MODEL:
  WEIGHTS: "of_the_stub.pth"
"""


def found(t):
    """Two squares: one that moves right and one that stands still."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 50:90, 4 * t : 4 * t + 40] = True
    masks[1, 10:40, 80:110] = True
    probs = torch.zeros(2, 40)
    probs[range(2), range(2)] = torch.tensor(SCORES)
    return Instances(SIZE, track_ids=torch.tensor([3, 8]), pred_masks=masks, class_probs=probs)


class StubPredictor:
    """Finds the squares of ``found`` in any video."""

    def __init__(self, cfg):
        node = cfg.TEST.VIS
        assert (node.MODE, node.MAX_TRACKS) == ("unique", 1000)
        # It does not apply the threshold of the config: the demo must.
        self.model = type("Model", (), {"selection": TrackSelection(mode="unique")})

    def __call__(self, source):
        collector = TrackletCollector(SIZE)
        for t, _ in enumerate(open_source(source)):
            collector.add(t, found(t))
        return collector.finish(self.model.selection)

    def stream(self, source):
        """Answers three frames late, as models with overlapping windows do."""
        late = []
        for t, _ in enumerate(open_source(source)):
            late.append(t)
            if len(late) > 3:
                yield late[0], self._running(late.pop(0))
        yield from ((t, self._running(t)) for t in late)

    def _running(self, t):
        tracks = found(t)
        seen = {3: TrackScores(40), 8: TrackScores(40)}
        for scores, row in zip(seen.values(), tracks.class_probs):
            scores.add(row)
        tracks.scores, tracks.pred_classes = self.model.selection.running(seen, [3, 8], 1)
        return tracks


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the demo on a stub model; gives the folder with what it wrote."""
    monkeypatch.setattr(demo, "VideoPredictor", StubPredictor)
    (tmp_path / "model.yaml").write_text(YAML)

    def start(source, *options, output="out/clip.mp4"):
        argv = ["--config-file", str(tmp_path / "model.yaml"), "--input", str(source)]
        assert demo.main([*argv, "--output", str(tmp_path / output), *options]) == 0
        return (tmp_path / output).parent

    return start


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "frames").mkdir()
    for t in range(12):
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(tmp_path / "frames" / f"{t}.png")
    return tmp_path / "frames"


@pytest.fixture
def film(tmp_path, folder):
    with video_writer.VideoWriter(tmp_path / "film.mp4", Fraction(30000, 1001), SIZE) as writer:
        for frame in open_source(folder):
            writer.write(frame)
    return writer.path


def colors_shown(path, index):
    """The identities whose outline or label can be seen in a frame."""
    picture = list(open_source(path))[index].astype(int)
    near = {i: np.abs(picture - identity_color(i)).max(axis=2) < 40 for i in (3, 8)}
    return {i for i, pixels in near.items() if pixels.sum() > 60}


def test_a_film_becomes_an_annotated_film(run, film, capsys):
    out = run(film)
    with av.open(str(out / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == Fraction(30000, 1001)
        assert sum(1 for _ in container.decode(video=0)) == 12
        assert (stream.height, stream.width) == (480, 640)  # small videos are enlarged
    printed = capsys.readouterr()
    for name in ("clip.mp4", "contact_sheet.png", "results.json"):
        assert (out / name).is_file()
        assert str(out / name) in printed.out
    assert "tracking: 100%" in printed.err and "drawing: 100%" in printed.err
    assert Image.open(out / "contact_sheet.png").format == "PNG"


def test_results_are_in_the_format_of_the_data_sets(run, folder):
    (entry,) = json.loads((run(folder) / "results.json").read_text())
    assert entry["category_id"] == 1  # ids of YouTube-VIS begin at 1, ours at 0
    assert entry["score"] == pytest.approx(0.9)
    assert len(entry["segmentations"]) == 12
    assert entry["segmentations"][0]["size"] == list(SIZE)


@pytest.mark.parametrize(("threshold", "shown"), [("0.1", {3, 8}), ("0.3", {3}), ("0.95", set())])
def test_the_threshold_filters_picture_and_results(run, folder, threshold, shown):
    out = run(folder, "--threshold", threshold)
    assert colors_shown(out / "clip.mp4", 2) == shown
    assert len(json.loads((out / "results.json").read_text())) == len(shown)


def test_an_identity_keeps_its_color_through_the_video(run, folder):
    out = run(folder, "--threshold", "0.1")
    assert all(colors_shown(out / "clip.mp4", t) == {3, 8} for t in (0, 5, 11))


def test_frames_play_at_25_unless_told_otherwise(run, folder):
    for options, rate in (([], 25), (["--fps", "10"], 10)):
        with av.open(str(run(folder, *options) / "clip.mp4")) as container:
            assert container.streams.video[0].average_rate == rate


def test_only_one_class_and_masks_only(run, folder):
    out = run(folder, "--threshold", "0", "--only-class", "1", "--masks-only", "--min-side", "0")
    picture = list(open_source(out / "clip.mp4"))[2]
    assert picture.shape == (*SIZE, 3)
    assert np.abs(picture[25, 95] - np.array(identity_color(8))).max() < 20
    assert picture[70, 20].max() < 20


def test_without_an_encoder_the_frames_are_kept(run, folder, monkeypatch, capsys):
    monkeypatch.setattr(video_writer, "ENCODERS", ("no_such_encoder",))
    out = run(folder)
    assert len(list((out / "clip_frames").glob("*.png"))) == 12
    assert str(out / "clip_frames") in capsys.readouterr().out
    assert (out / "results.json").is_file() and (out / "contact_sheet.png").is_file()


class Camera(VideoSource):
    """Gives 12 frames, once."""

    def __init__(self):
        super().__init__("camera", fps=15.0, num_frames=None, rereadable=False)

    def _decode(self):
        for t in range(12):
            yield f"frame {t}", np.full((*SIZE, 3), 90 + 10 * t, dtype=np.uint8)


def test_what_can_be_read_only_once_is_drawn_live(run, monkeypatch):
    monkeypatch.setattr(demo, "open_source", lambda source, fps: Camera())
    out = run("0")
    with av.open(str(out / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 15
        assert sum(1 for _ in container.decode(video=0)) == 12
    assert colors_shown(out / "clip.mp4", 2) == {3}
    corners = [int(frame[-5, -5, 0]) for frame in open_source(out / "clip.mp4")]
    assert corners == pytest.approx([90 + 10 * t for t in range(12)], abs=4)
    (entry,) = json.loads((out / "results.json").read_text())
    assert sum(mask is not None for mask in entry["segmentations"]) == 12


@pytest.mark.parametrize("live", [False, True])
def test_ctrl_c_keeps_what_has_been_done(run, folder, monkeypatch, live):
    class Interrupted(VideoSource):
        """Somebody presses Ctrl-C while frame 5 is read for the first time."""

        pressed = False

        def _decode(self):
            for t in range(12):
                if t == 5 and not Interrupted.pressed:
                    Interrupted.pressed = True
                    os.kill(os.getpid(), signal.SIGINT)
                yield f"frame {t}", np.full((*SIZE, 3), 90, dtype=np.uint8)

    source = Interrupted("film", fps=25.0, num_frames=12, rereadable=not live)
    monkeypatch.setattr(demo, "open_source", lambda *_, **__: source)
    before = signal.getsignal(signal.SIGINT)
    out = run(folder)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list(open_source(out / "clip.mp4"))) == 5
    (entry,) = json.loads((out / "results.json").read_text())
    assert len(entry["segmentations"]) == 5


@pytest.mark.parametrize("live", [False, True])
def test_a_frame_that_breaks_costs_only_what_comes_after_it(
    run, folder, tmp_path, monkeypatch, live
):
    class Breaking(VideoSource):
        def _decode(self):
            for t in range(5):
                yield f"frame {t}", np.full((*SIZE, 3), 90, dtype=np.uint8)
            raise ValueError("film: frame 5 cannot be decoded")

    source = Breaking("film", fps=25.0, num_frames=12, rereadable=not live)
    monkeypatch.setattr(demo, "open_source", lambda *_, **__: source)
    with pytest.raises(ValueError, match=r"film: frame 5 cannot be decoded; .*\(frames: 5\)"):
        run(folder)
    assert len(list(open_source(tmp_path / "out" / "clip.mp4"))) == 5
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(entry["segmentations"]) == 5


def test_results_outlive_a_failing_drawing(run, folder, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no more space")

    monkeypatch.setattr(demo, "render", fail)
    with pytest.raises(RuntimeError, match="no more space"):
        run(folder)
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(entry["segmentations"]) == 12


def test_a_data_set_that_nobody_knows_here_has_ids_from_1(run, folder, tmp_path):
    """As after a training with a set that the user's own script registered."""
    out = run(folder, "DATASETS.TRAIN", "('my_own_set',)", "MODEL.VIS.NUM_CLASSES", "40")
    (entry,) = json.loads((out / "results.json").read_text())
    assert entry["category_id"] == 1


def test_a_real_model_with_random_weights(tmp_path, folder):
    configs = Path(__file__).resolve().parents[2] / "configs" / "quick"
    demo.main(
        ["--config-file", str(min(configs.glob("*.yaml"))), "--weights", "", "--device", "cpu"]
        + ["--input", str(folder), "--output", str(tmp_path / "out.mp4")]
        # A data set whose classes are known without its files.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "0"]
    )
    assert len(list(open_source(tmp_path / "out.mp4"))) == 12
    assert json.loads((tmp_path / "results.json").read_text()) == []


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (["--input", "nowhere.mp4"], FileNotFoundError, "nowhere.mp4"),
        (["--only-class", "unicorn"], ValueError, "unicorn"),
        (["TEST.VIS.MODUS", "ap"], KeyError, "TEST.VIS.MODE"),
        (["MODEL.WEIGHTS", ""], ValueError, "names a checkpoint"),
        (["--output", "{}/frames"], ValueError, "frames: this is a folder"),
        (["--output", "{}/clip.gif"], ValueError, "clip.gif: expected a name that ends in .mp4"),
        (["--output", "{}/model.yaml/o.mp4"], OSError, "its folder cannot be made"),
        (["--output", "{}/frames/o.mp4"], ValueError, "would become one of the frames in"),
        (["--fps", "0"], ValueError, "must be > 0"),
        (["--sheet-frames", "0"], ValueError, "at least one frame"),
    ],
)
def test_wrong_input_is_named_before_the_work_begins(
    run, folder, tmp_path, monkeypatch, option, error, message
):
    monkeypatch.setattr(StubPredictor, "__call__", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(error, match=message):
        run(folder, *[text.format(tmp_path) for text in option])


@pytest.mark.parametrize("threshold", ["2", "-0.1", "nan", "high"])
def test_a_threshold_is_a_score(run, folder, capsys, threshold):
    with pytest.raises(SystemExit, match="2"):
        run(folder, f"--threshold={threshold}")
    message = f"argument --threshold: expected a score from 0 to 1, got {threshold}"
    assert message in capsys.readouterr().err


def test_the_input_is_never_written_over(run, film):
    before = film.read_bytes()
    with pytest.raises(ValueError, match="film.mp4: the output would replace the input"):
        run(film, output="film.mp4")
    with pytest.raises(ValueError, match="would replace the input"):
        run(film, output="film")
    assert film.read_bytes() == before
