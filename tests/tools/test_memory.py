import mmap

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances

from vis_d2.data.augmentation import TestFrameTransform
from vis_d2.engine import VideoPredictor
from vis_d2.inference import TrackSelection
from vis_d2.meta_arch import VideoMetaArch, add_vis_config
from vis_d2.tools import memory
from vis_d2.utils.memory import resident_mb

SIZE, FRAMES, SETTLED = (240, 320), 300, 80  # the ten masks of a frame: 0.7 MB
LIMIT = 15.0  # MB; keeping every frame's masks takes 150


class Blobs(VideoMetaArch):
    """Finds ten rectangles in every frame."""

    def losses(self, images, clips):
        return {}

    def start(self, output_size):
        return output_size

    def step(self, images, state):
        return (self._frame(state) for _ in images.image_sizes), state

    def _frame(self, size):
        masks = torch.zeros(10, *size, dtype=torch.bool)
        for i, mask in enumerate(masks):
            mask[20 * i : 20 * i + 30, 10:200] = True
        probs = torch.full((10, 40), 0.5)
        return Instances(size, track_ids=torch.arange(10), class_probs=probs, pred_masks=masks)


@pytest.fixture
def predictor():
    """A VideoPredictor whose model is not the one of a config."""
    predictor = VideoPredictor.__new__(VideoPredictor)
    predictor.cfg = get_cfg()
    add_vis_config(predictor.cfg)
    # A data set whose classes are known without its files.
    predictor.cfg.DATASETS.TRAIN = ("ytvis_2019_train",)
    predictor.cfg.INPUT.MIN_SIZE_TEST = 32
    predictor.transform = TestFrameTransform(predictor.cfg)
    predictor.model = Blobs(
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        size_divisibility=32,
        window=1,
        stride=1,
        selection=TrackSelection(mode="unique"),
    ).eval()
    return predictor


def test_streaming_does_not_grow(predictor):
    curve = memory.stream_curve(predictor, SIZE, FRAMES, 3)
    assert len(curve.resident) == FRAMES and curve.masks == 10 * FRAMES
    assert curve.growth(SETTLED) < LIMIT


def test_evaluation_does_not_grow(predictor):
    before = set(DatasetCatalog.list())
    curve = memory.evaluation_curve(predictor, SIZE, FRAMES, 3)
    assert len(curve.resident) == FRAMES and curve.masks == 10 * FRAMES
    assert curve.growth(SETTLED) < LIMIT
    assert set(DatasetCatalog.list()) == before


def test_a_leak_is_seen():
    """The measure itself: keeping half a megabyte per frame does show."""
    kept, resident = [], []
    for _ in range(FRAMES):
        # Mapped pages: malloc could serve this from what earlier tests gave back.
        kept.append(mmap.mmap(-1, 2**19))
        kept[-1].write(b"\1" * 2**19)
        resident.append(resident_mb())
    assert memory.Curve(resident, 0).growth(SETTLED) > 2 * LIMIT


@pytest.mark.parametrize(("grown", "code"), [(5.0, 0), (70.0, 1)])
def test_the_tool_fails_where_memory_grows(monkeypatch, capsys, grown, code):
    curve = memory.Curve([700.0] * 30 + [700.0 + grown] * 30, 9)
    monkeypatch.setattr(memory, "VideoPredictor", lambda cfg: None)
    monkeypatch.setattr(memory, "stream_curve", lambda *_: curve)
    monkeypatch.setattr(memory, "evaluation_curve", lambda *_: memory.Curve([700.0] * 60, 0))
    monkeypatch.setattr(memory, "load_config", lambda *_: None)
    argv = ["--config-file", "any.yaml", "--frames", "60", "--settled", "30"]
    assert memory.main(argv) == code
    text = capsys.readouterr().out
    assert f"stream: grew by {grown:.1f} MB after frame 30 (limit 60 MB)" in text
    assert "evaluation: nothing was found" in text
    assert f"{700 + grown:.1f}" in text.splitlines()[10]
