"""Windows of a video: short ones repeat, shared frames link and average, absent frames stay out."""

from typing import List

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor

from systems import moving_squares, small_cfg
from vis_d2.inference import stream
from vis_d2.meta_arch.tt_spn import TTSPN
from vis_d2.meta_arch.tt_spn.detector import ClipStates
from vis_d2.meta_arch.tt_spn.tt_spn import valid_pixels

SIZE, K = (64, 96), 5


def build(*opts) -> TTSPN:
    torch.manual_seed(0)
    return build_model(small_cfg("tt_spn", *opts)).eval()


def frames(count: int) -> List[Tensor]:
    return moving_squares(count)["image"]


def run(model: TTSPN, count: int, size=SIZE):
    return [tracks for _, tracks in stream(model, frames(count), size)]


@pytest.fixture
def model() -> TTSPN:
    return build()


def test_a_short_window_is_repeated_from_its_start(model, monkeypatch):
    """Two frames of three: the third is the first again, and what it says is not reported."""
    seen = []
    original = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: (seen.append(len(x)), original(x))[1])
    short = run(model, 2)
    assert seen == [2] and len(short) == 2  # each frame goes through the backbone once
    images = model.preprocess(frames(2))
    repeated = torch.cat([images.tensor, images.tensor[:1]])
    full = ImageList(repeated, [*images.image_sizes, images.image_sizes[0]])
    with torch.no_grad():
        tracks, state = model.step(full, model.start(SIZE))
        expected = [*tracks, *model.flush(state)]
    for mine, theirs in zip(short, expected):
        assert torch.allclose(mine.class_probs, theirs.class_probs, atol=1e-5)
        assert torch.allclose(mine.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=1e-3)
        assert (mine.pred_masks == theirs.pred_masks).float().mean() > 0.999


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8])
def test_every_frame_comes_out_once(stride, count):
    results = run(build("TEST.VIS.STRIDE", stride), count)
    assert len(results) == count
    assert all(tracks.pred_masks.shape[1:] == SIZE for tracks in results)


def fake_detections(model, monkeypatch, slots_of_window, absent=()):
    """Slots that see a square each, at a place of its own, in an order that changes by window.

    Args:
        slots_of_window: per window, which object each slot has.
        absent: pairs of a window and an object that it claims to see in no frame.
    """
    number = iter(range(100))

    def detect(features, valid=None, every_layer=False):
        window = next(number)
        count = len(slots_of_window[window])
        logits = torch.full((1, count, 3, K + 1), -20.0)
        boxes = torch.zeros(1, count, 3, 4)
        for slot, thing in enumerate(slots_of_window[window]):
            logits[0, slot, :, K if (window, thing) in absent else thing] = 20.0
            boxes[0, slot] = torch.tensor([0.25 + 0.25 * thing, 0.5, 0.2, 0.5])
        states = torch.tensor(slots_of_window[window]).float().expand(1, 3, count)[..., None]
        outputs = {"pred_logits": logits, "pred_boxes_cxcywh": boxes}
        return ClipStates([outputs], states, torch.zeros(1, 3, 2, 3, 1), None)

    def draw(states, levels, rows, slots, repeat=None):
        masks = torch.full((len(slots), 3, 16, 24), -8.0)
        for i, slot in enumerate(slots.tolist()):
            left = 4 + 6 * int(states.states[0, 0, slot, 0])
            masks[i, :, 4:12, left : left + 4] = 8.0
        return masks

    monkeypatch.setattr(model.detector, "forward", detect)
    monkeypatch.setattr(model.masks, "forward", draw)


def test_identities_go_on_over_windows_whose_slots_change(model, monkeypatch):
    fake_detections(model, monkeypatch, [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    for tracks in run(model, 7):
        assert tracks.track_ids.tolist() == [0, 1, 2]
        assert tracks.class_probs.argmax(1).tolist() == [0, 1, 2]
        assert tracks.class_probs.shape == (3, K)
        # Object i is 16 pixels wide, from 16 + 24 i on; its box is another one.
        for i in range(3):
            columns = tracks.pred_masks[i].any(dim=0).nonzero()[:, 0]
            assert abs(columns[0] - (16 + 24 * i)) <= 1 and abs(columns[-1] - (31 + 24 * i)) <= 1
        expected = torch.tensor([[14.4 + 24 * i, 16.0, 33.6 + 24 * i, 48.0] for i in range(3)])
        assert torch.allclose(tracks.pred_boxes.tensor, expected, atol=1e-3)


def test_an_object_leaves_frames_in_which_it_is_improbable(model, monkeypatch):
    """Absent from the second window, frames 2 to 4; frame 2 is seen by the first as well."""
    fake_detections(model, monkeypatch, [[0, 1], [0, 1], [0, 1]], absent={(1, 1)})
    found = [tracks.class_probs.argmax(1).tolist() for tracks in run(model, 7)]
    assert found == [[0, 1], [0, 1], [0, 1], [0], [0, 1], [0, 1], [0, 1]]


def test_slots_that_nobody_sees_cost_no_masks(model, monkeypatch):
    chosen = []
    fake_detections(model, monkeypatch, [[0, 1, 2]], absent={(0, 1)})
    original = model.masks.forward

    def watched(states, levels, rows, slots, repeat=None):
        chosen.append(slots.tolist())
        return original(states, levels, rows, slots, repeat)

    monkeypatch.setattr(model.masks, "forward", watched)
    run(model, 3)
    assert chosen == [[0, 2]]


@pytest.mark.parametrize("task", ["all", "detection"])
def test_nothing_seen_is_a_result(task):
    results = run(build("MODEL.TT_SPN.TASK", task, "MODEL.TT_SPN.FRAME_SCORE_THR", 1.0), 5)
    assert [tuple(tracks.pred_masks.shape) for tracks in results] == [(0, *SIZE)] * 5


def test_masks_made_in_parts_are_the_same(model, monkeypatch):
    whole = run(model, 5)
    monkeypatch.setattr("vis_d2.meta_arch.tt_spn.mask_branch.CHUNK_PIXELS", 1)
    for one, other in zip(whole, run(model, 5)):
        assert torch.equal(one.track_ids, other.track_ids)
        assert (one.pred_masks == other.pred_masks).float().mean() > 0.999


def test_detection_alone_gives_filled_boxes(monkeypatch):
    model = build("MODEL.TT_SPN.TASK", "detection")
    (tracks, *_) = run(model, 3, size=(128, 192))
    assert len(tracks) > 0
    for mask, (x0, y0, x1, y1) in zip(tracks.pred_masks, tracks.pred_boxes.tensor.tolist()):
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()
        assert rows.sum().item() == pytest.approx(y1 - y0, abs=1.01)
        assert columns.sum().item() == pytest.approx(x1 - x0, abs=1.01)


def test_a_pixel_of_a_map_is_padding_where_its_corner_is(model):
    """Frames of 61 x 83 pixels, padded to 64 x 96: cells of 32 start at 64 at the latest."""
    images = model.preprocess([f[:, :61, :83] for f in frames(2)])
    assert tuple(images.tensor.shape[-2:]) == (64, 96)
    assert valid_pixels(images, (2, 3)).all()
    fine = valid_pixels(images, (16, 24))
    assert fine.shape == (2, 16, 24)
    assert fine[0].any(dim=1).sum() == 16 and fine[0].any(dim=0).sum() == 21  # 20 * 4 = 80 < 83
    assert valid_pixels(model.preprocess(frames(2)), (2, 3)) is None


def test_frames_are_padded_to_the_coarsest_stride(model):
    assert model.size_divisibility == 32
