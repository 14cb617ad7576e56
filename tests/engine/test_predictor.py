from pathlib import Path
from typing import Any, Iterator, List

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from stand_in import CLASSES, make_cfg

from vis_d2.engine import VideoPredictor, build_checkpointer, prepare_config
from vis_d2.inference import TrackSelection
from vis_d2.utils.video_io import open_source

SIZE = (32, 44)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights with which the model sees colour only: class 0 is blue, class 1 is not blue."""
    folder = tmp_path_factory.mktemp("weights")
    cfg = make_cfg(folder)
    prepare_config(cfg)
    model = build_model(cfg)
    for p in model.parameters():
        p.data.zero_()
    model.backbone[0].weight.data[0, 0, 1, 1] = 0.1  # BGR: the first channel is blue
    model.backbone[1].weight.data.fill_(1.0)
    model.predictor.weight.data[0, 0] = 2.0
    model.predictor.weight.data[1, 0] = -2.0
    build_checkpointer(cfg, model, str(folder)).save("w")
    return str(folder / "w.pth")


def make_frames(count: int = 5) -> List[np.ndarray]:
    """A blue square that moves right over red noise; it is not there in the last frame."""
    rng = np.random.default_rng(0)
    frames = []
    for t in range(count):
        frame = np.zeros((*SIZE, 3), dtype=np.uint8)
        frame[..., 2] = rng.integers(100, 255, SIZE)
        if t < count - 1:
            frame[8:20, 4 + 3 * t : 16 + 3 * t, 0] = 255 - 20 * t
        frames.append(frame)
    return frames


def predictor(weights: str, *opts: Any) -> VideoPredictor:
    return VideoPredictor(make_cfg("unused", "MODEL.WEIGHTS", weights, *opts))


def test_a_video_answers_tracks_at_its_own_size(weights: str) -> None:
    result = predictor(weights)(make_frames())
    assert result.image_size == SIZE and result.num_frames == 5
    row = result.pred_classes.tolist().index(0)
    for t in range(4):
        mask = result.frame(t).pred_masks[result.frame(t).track_ids == result.track_ids[row]][0]
        assert mask[10:18, 7 + 3 * t : 13 + 3 * t].all()
        assert not mask[:, 22 + 3 * t :].any() and not mask[24:].any()


def test_all_kinds_of_sources_give_the_same(weights: str, tmp_path: Path) -> None:
    predict, frames = predictor(weights), make_frames()
    for t, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{t:03d}.png"), frame)
    expected = predict(frames)
    generator = (frame for frame in frames)
    sources = [str(tmp_path), tmp_path, str(tmp_path / "*.png"), generator, open_source(frames)]
    for source in [*sources, frames]:
        result = predict(source)
        assert torch.equal(result.scores, expected.scores)
        assert result.segmentations == expected.segmentations


def test_frames_are_bgr_whatever_the_model_wants(weights: str) -> None:
    bgr = predictor(weights)(make_frames())
    rgb = predictor(weights, "INPUT.FORMAT", "RGB")(make_frames())
    assert bgr.scores.tolist() != rgb.scores.tolist()
    swapped = [frame[:, :, ::-1].copy() for frame in make_frames()]
    rgb = predictor(weights, "INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "(0.0,0.0,0.0)")(swapped)
    bgr = predictor(weights, "MODEL.PIXEL_MEAN", "(0.0,0.0,0.0)")(make_frames())
    assert torch.equal(bgr.scores, rgb.scores)


def test_stream_scores_the_frames_so_far(weights: str) -> None:
    predict, frames = predictor(weights), make_frames()
    steps = list(predict.stream(frames))
    assert [t for t, _ in steps] == list(range(5))
    for t, tracks in steps:
        so_far = predict(frames[: t + 1])
        best = {}
        for track_id, label, score in zip(so_far.track_ids, so_far.pred_classes, so_far.scores):
            best.setdefault(int(track_id), (int(label), float(score)))
        found = zip(tracks.track_ids, tracks.pred_classes, tracks.scores)
        present = {int(i): (int(c), pytest.approx(float(s))) for i, c, s in found}
        assert present == {track_id: best[track_id] for track_id in present}
        assert len(present) == (1 if t < 4 else 0)
        assert tracks.pred_boxes.tensor.shape == (len(tracks), 4)
        assert tracks.pred_masks.shape == (len(tracks), *SIZE)


def test_an_empty_mask_is_no_track(weights: str) -> None:
    predict = predictor(weights)
    predict.model.predictor.weight.data.zero_()  # both maps are flat: no pixel above the mean
    assert all(len(tracks) == 0 for _, tracks in predict.stream(make_frames()))
    result = predict(make_frames())
    assert len(result) == 0 and result.num_frames == 5


@pytest.mark.parametrize("window", [1, 2])
def test_frames_are_read_when_they_are_needed(weights: str, window: int) -> None:
    read = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in make_frames(8):
            read += 1
            yield frame

    opts = ("TEST.VIS.WINDOW", window, "TEST.VIS.STRIDE", window)
    for t, _ in predictor(weights, *opts).stream(source()):
        assert read <= t - t % window + window
    assert read == 8


def test_a_model_without_weights_says_so(caplog: Any) -> None:
    VideoPredictor(make_cfg("unused"))
    assert "MODEL.WEIGHTS is empty" in caplog.text


def test_no_state_leaks_from_video_to_video(weights: str) -> None:
    predict = predictor(weights)
    first = predict(make_frames())
    predict(make_frames(3))
    assert predict(make_frames()).segmentations == first.segmentations


def test_detectron2s_predictor_and_visualizer_take_an_image(weights: str) -> None:
    cfg = make_cfg("unused", "MODEL.WEIGHTS", weights)
    prepare_config(cfg)
    image = make_frames()[0]
    answer = DefaultPredictor(cfg)(image)["instances"]
    assert answer.image_size == SIZE
    assert {"pred_boxes", "scores", "pred_classes", "pred_masks", "track_ids"} <= set(
        answer.get_fields()
    )
    row = answer.pred_classes.tolist().index(0)
    np.testing.assert_allclose(
        answer.pred_boxes.tensor[row].tolist(), answer_box(answer.pred_masks[row]), atol=1.0
    )
    metadata = MetadataCatalog.get("stand_in")
    assert metadata.thing_classes == CLASSES
    drawn = Visualizer(image[:, :, ::-1], metadata, scale=4.0).draw_instance_predictions(answer)
    plain = Visualizer(image[:, :, ::-1], metadata, scale=4.0).get_output()
    assert (drawn.get_image() != plain.get_image()).any()


def answer_box(mask: torch.Tensor) -> List[float]:
    rows, columns = torch.where(mask)
    corner = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [float(value) for value in corner]


@pytest.mark.parametrize("over, expected", [("present", [0.8, 0.8]), ("all", [0.8, 1.9 / 3])])
def test_a_frame_without_a_mask_counts_in_later_scores(weights, monkeypatch, over, expected):
    """With 0.8, 0.3 (its mask is empty: not in the answer) and 0.8."""
    predict = predictor(weights)
    predict.model.selection = TrackSelection(over=over)
    frames = [
        Instances(
            (2, 2),
            track_ids=torch.tensor([1]),
            class_probs=torch.tensor([[prob, 0.0]]),
            pred_masks=torch.full((1, 2, 2), prob > 0.5),
        )
        for prob in (0.8, 0.3, 0.8)
    ]
    monkeypatch.setattr(predict, "_tracks", lambda source: enumerate(frames))
    found = [tracks.scores.tolist() for _, tracks in predict.stream([])]
    assert [len(scores) for scores in found] == [1, 0, 1]
    assert [scores[0] for scores in found if scores] == pytest.approx(expected)


def test_scores_of_an_endless_stream_stay_bounded(weights: str, monkeypatch: Any) -> None:
    """With room for two tracks, the one unseen for longest starts anew when it comes back."""
    monkeypatch.setattr("vis_d2.engine.predictor.MAX_SCORED_TRACKS", 2)
    predict = predictor(weights)

    def tracks(track_id: int, prob: float) -> Instances:
        return Instances(
            (2, 2),
            track_ids=torch.tensor([track_id]),
            class_probs=torch.tensor([[prob, 0.0]]),
            pred_masks=torch.ones(1, 2, 2, dtype=torch.bool),
        )

    frames = [tracks(1, 0.8), tracks(2, 0.8), tracks(2, 0.4), tracks(3, 0.5), tracks(1, 0.2)]
    monkeypatch.setattr(predict, "_tracks", lambda source: enumerate(frames))
    scores = [float(found.scores[0]) for _, found in predict.stream([])]
    assert scores == pytest.approx([0.8, 0.8, 0.6, 0.5, 0.2])
