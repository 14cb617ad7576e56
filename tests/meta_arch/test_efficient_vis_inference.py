"""Videos clip by clip: identities, what is shown, and how masks get into the frame.

The stages are replaced by a script, so that every score, box and mask is known. Clips have three
frames of 64 x 96 pixels, the model four slots and five classes.
"""

import math
from typing import Callable, Dict, List, Optional

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from systems import ROOT, moving_squares, small_cfg
from vis_d2 import add_vis_config
from vis_d2.inference import stream

N, T, K, C, SIDE = 4, 3, 5, 16, 8
SIZE = (64, 96)
PLACES = torch.tensor([[4.0 + 24 * i, 8.0, 20.0 + 24 * i, 40.0] for i in range(N)])  # 16 x 32


def build(*opts):
    keys = [x if "." in str(x) or i % 2 else f"MODEL.EFFICIENT_VIS.{x}" for i, x in enumerate(opts)]
    torch.manual_seed(0)
    return build_model(small_cfg("efficient_vis", *keys)).eval()


def frames(count: int, size=SIZE) -> List[Tensor]:
    return [torch.zeros(3, *size, dtype=torch.uint8)] * count


class Script:
    """Stands in for the stages.

    Args:
        model: whose stages are replaced.
        probs: (N, K) or, frame by frame, (N, F, K); slot i stays at ``PLACES[i]``.
        boxes: (N, F, 4), if they move.
        masks: (N, F, 1 or K, SIDE, SIDE) logits; full ones by default.
    """

    def __init__(
        self, model, probs: Tensor, boxes: Optional[Tensor] = None, masks: Optional[Tensor] = None
    ) -> None:
        length = 12 if probs.dim() == 2 else probs.shape[1]
        self.logits = _logit(probs if probs.dim() == 3 else probs[:, None].expand(-1, length, -1))
        self.boxes = PLACES[:, None].expand(-1, length, -1) if boxes is None else boxes
        self.masks = torch.full((N, length, 1, SIDE, SIDE), 20.0) if masks is None else masks
        self.calls: List[Dict] = []
        self.start = 0
        model.refiner.forward = self.forward

    def forward(self, features, sizes, valid, queries=None, all_masks=True):
        span = slice(self.start, self.start + valid.shape[1])
        self.start = span.stop
        self.calls.append({"queries": queries, "valid": valid, "all_masks": all_masks})
        outputs = {"pred_logits": self.logits, "pred_boxes": self.boxes, "pred_masks": self.masks}
        layer = {name: value[None, :, span] for name, value in outputs.items()}
        return [{}, {**layer, "size": sizes}], torch.full((1, N, C), float(len(self.calls)))


def _logit(probs: Tensor) -> Tensor:
    return torch.logit(probs.clamp(1e-6, 1 - 1e-6))


def scores_of(*best: float) -> Tensor:
    """(N, K): slot i has class i with this probability, and nothing else."""
    probs = torch.zeros(N, K)
    probs[range(N), range(N)] = torch.tensor(best)
    return probs


def run(model, count: int, size=SIZE):
    return [tracks for _, tracks in stream(model, frames(count), size)]


def video(model, count: int):
    inputs = {"image": frames(count), "height": SIZE[0], "width": SIZE[1]}
    return model([inputs])[0]["instances"]


SURE = scores_of(0.9, 0.8, 0.7, 0.6)


def test_clips_follow_each_other_without_overlap_and_hand_their_queries_over():
    model = build()
    script = Script(model, SURE)
    assert [len(tracks) for tracks in run(model, 7)] == [N] * 7
    assert [call["valid"].shape[1] for call in script.calls] == [3, 3, 1]  # the last one is short
    assert all(call["valid"].all() and not call["all_masks"] for call in script.calls)
    assert script.calls[0]["queries"] is None
    for k in (1, 2):
        assert torch.equal(script.calls[k]["queries"], torch.full((1, N, C), float(k)))


def test_the_slot_is_the_identity_of_the_whole_video():
    model = build()
    moved = PLACES[:, None].repeat(1, 12, 1)
    moved[:, T:] = PLACES.flip(0)[:, None]  # from the second clip on, others would look nearer
    Script(model, SURE, moved)
    assert [tracks.track_ids.tolist() for tracks in run(model, 7)] == [[0, 1, 2, 3]] * 7


@pytest.mark.parametrize("count", [1, 2])
def test_a_video_shorter_than_a_clip(count):
    model = build("TEST.VIS.MODE", "unique")
    script = Script(model, SURE)
    result = video(model, count)
    assert (len(script.calls), result.num_frames, len(result)) == (1, count, N)
    real = build()  # and with stages in place of the script
    assert len(run(real, count)) == count


def test_a_new_video_starts_from_the_learned_queries():
    model = build()
    script = Script(model, SURE)
    run(model, 6)
    script.start = 0
    run(model, 3)
    assert [call["queries"] is None for call in script.calls] == [True, False, True]


def idle(at: float = 0.05, clips: int = 5) -> Tensor:
    """Slot 1 shows background, except in the middle frame of every clip."""
    probs = SURE[:, None].repeat(1, clips * T, 1)
    probs[1] = 0.0
    probs[1, 1::T, 1] = at * T  # so that ``at`` is the mean over the clip
    return probs


def test_a_slot_that_shows_nothing_for_three_clips_gets_a_new_id_with_the_fourth():
    model = build()
    script = Script(model, idle())
    ids = [tracks.track_ids.tolist() for tracks in run(model, 15)]
    assert ids == [[0, 1, 2, 3]] * 9 + [[0, N, 2, 3]] * 6
    renewed = [
        torch.equal(call["queries"][0, 1], model.refiner.init_query.weight[1])
        for call in script.calls[1:]
    ]
    assert renewed == [False, False, True, False]
    assert (script.calls[3]["queries"][0, [0, 2, 3]] == 3).all()


@pytest.mark.parametrize(
    "opts, changes",
    [
        (("REINIT_CLIPS", 0), False),
        (("BG_THR", 0.04), False),
        (("REINIT_CLIPS", 5), False),
        (("REINIT_CLIPS", 1), True),
    ],
)
def test_when_a_slot_is_given_up_is_a_choice(opts, changes):
    model = build(*opts)
    Script(model, idle())
    ids = {tracks.track_ids.tolist()[1] for tracks in run(model, 15)}
    assert (len(ids) > 1) == changes


def test_two_identities_of_one_slot_are_two_tracks():
    probs = idle()
    probs[1, 4 * T :, 2] = 0.8  # an object is born in the fifth clip, under the slot's second id
    model = build("TEST.VIS.MODE", "unique")
    Script(model, probs)
    result = video(model, 15)
    ids = result.track_ids.tolist()
    assert sorted(ids) == [0, 1, 2, 3, N]
    present = [s is not None for s in result.segmentations[ids.index(N)]]
    assert present == [False] * 9 + [True] * 6


def test_the_score_is_the_mean_over_the_video_and_the_class_its_largest():
    """Slot 0: class 0 with 0.9 in two frames of five and class 3 with 0.5 in all of them."""
    probs = SURE[:, None].repeat(1, 5, 1)
    probs[0] = 0.0
    probs[0, :2, 0], probs[0, :, 3] = 0.9, 0.5
    model = build("TEST.VIS.MODE", "unique")
    Script(model, probs)
    result = video(model, 5)
    row = result.track_ids.tolist().index(0)
    assert result.pred_classes[row] == 3
    assert result.scores[row].item() == pytest.approx(0.5, abs=1e-5)
    assert len(result) == N  # one row per slot


def test_masks_fill_their_boxes_at_output_size():
    model = build()
    Script(model, SURE)
    for tracks in run(model, 4, size=(128, 192)):
        assert tracks.image_size == (128, 192)
        assert torch.equal(tracks.pred_boxes.tensor, PLACES * 2)
        for i, (x0, y0, x1, y1) in enumerate((PLACES * 2).int().tolist()):
            mask = tracks.pred_masks[i].clone()
            # Corners are round: there both sides of the pasted mask fade.
            assert mask[y0:y1, x0 + 4 : x1 - 4].all() and mask[y0 + 8 : y1 - 8, x0:x1].all()
            mask[y0:y1, x0:x1] = False
            assert not mask.any()
        assert torch.allclose(tracks.class_probs, SURE, atol=1e-5)


def test_boxes_beyond_the_frame_are_clipped_after_their_masks_were_pasted():
    boxes = torch.tensor([[-16.0, 0.0, 16.0, 64.0], [200.0, 0.0, 210.0, 9.0], *([[0.0] * 4] * 2)])
    masks = torch.full((N, T, 1, SIDE, SIDE), -20.0)
    masks[..., SIDE // 2 :] = 20.0  # the right half: exactly what lies in the frame
    model = build()
    Script(model, SURE, boxes[:, None].expand(-1, T, -1), masks)
    tracks = run(model, 1)[0]
    assert tracks.pred_boxes.tensor[0].tolist() == [0.0, 0.0, 16.0, 64.0]
    assert tracks.pred_masks[0, 8:56, 1:16].all() and not tracks.pred_masks[0, :, 16:].any()
    assert not tracks.pred_masks[1:].any()


def test_a_slot_without_a_mask_in_any_frame_is_no_track():
    masks = torch.full((N, 6, 1, SIDE, SIDE), 20.0)
    masks[2] = -20.0
    masks[3, :3] = -20.0
    model = build("TEST.VIS.MODE", "unique")
    Script(model, SURE[:, None].repeat(1, 6, 1), masks=masks)
    result = video(model, 6)
    assert sorted(result.track_ids.tolist()) == [0, 1, 3]
    row = result.track_ids.tolist().index(3)
    assert [s is not None for s in result.segmentations[row]] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("threshold, area", [(0.5, 0), (0.3, 16 * 32)])
def test_the_mask_threshold(threshold, area):
    masks = torch.full((N, T, 1, SIDE, SIDE), math.log(0.4 / 0.6))
    model = build("MASK_THR", threshold)
    Script(model, SURE[:, None].repeat(1, T, 1), masks=masks)
    # The border of a pasted mask is as wide as half of its pixels: it fades below the threshold.
    found = run(model, 1)[0].pred_masks[0].sum().item()
    assert abs(found - area) <= 100 * (area > 0)


def test_masks_per_class_are_read_in_the_class_of_the_clip():
    model = build("MASK_CLASS_AGNOSTIC", False)
    masks = torch.full((N, 6, K, SIDE, SIDE), -20.0)
    masks[0, :, 3] = 20.0
    probs = SURE[:, None].repeat(1, 6, 1)
    probs[0, :T], probs[0, T:] = 0.0, 0.0
    probs[0, :T, 3], probs[0, T:, 1] = 0.9, 0.9
    Script(model, probs, masks=masks)
    assert [bool(tracks.pred_masks[0].any()) for tracks in run(model, 6)] == [True] * 3 + [
        False
    ] * 3
    real = build("MASK_CLASS_AGNOSTIC", False)
    assert len(run(real, 2)) == 2


def in_sight(tracks) -> List[int]:
    return tracks.track_ids[tracks.pred_masks.flatten(1).any(1)].tolist()


def test_the_class_that_chooses_is_that_of_the_video_so_far():
    """Class 3 with 0.9 in a clip, then class 1 with 0.5 in two: 2.7 to 1.5, then 2.7 to 3.0."""
    masks = torch.full((N, 9, K, SIDE, SIDE), -20.0)
    masks[0, :, 3] = 20.0
    probs = SURE[:, None].repeat(1, 9, 1)
    probs[0] = 0.0
    probs[0, :T, 3], probs[0, T:, 1] = 0.9, 0.5
    model = build("MASK_CLASS_AGNOSTIC", False)
    script = Script(model, probs, masks=masks)
    assert [0 in in_sight(tracks) for tracks in run(model, 9)] == [True] * 6 + [False] * 3
    script.start = T
    assert [0 in in_sight(tracks) for tracks in run(model, T)] == [False] * T  # another video


def test_a_slot_that_starts_anew_forgets_its_class():
    probs = SURE[:, None].repeat(1, 9, 1)
    probs[0] = 0.0
    probs[0, :T, 3], probs[0, 2 * T :, 1] = 0.9, 0.2
    frames_of = {}
    for clips in (0, 1):
        model = build("FRAME_SCORE_THR", 0.15, "REINIT_CLIPS", clips)
        Script(model, probs)
        frames_of[clips] = [bool(t.pred_masks[0].any()) for t in run(model, 9)]
    assert frames_of[0] == [True] * 3 + [False] * 6  # still class 3, which is not to be seen
    assert frames_of[1] == [True] * 3 + [False] * 3 + [True] * 3


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_frames_without_a_mask_count_in_the_score(threshold):
    """0.9 in two frames; then a mask that is empty, or emptied, with 0.2: (2 * 0.9 + 0.2) / 3."""
    probs = SURE[:, None].repeat(1, T, 1)
    probs[0, 2, 0] = 0.2
    masks = torch.full((N, T, 1, SIDE, SIDE), 20.0)
    masks[0, 2] = 20.0 if threshold else -20.0
    model = build("TEST.VIS.MODE", "unique", "FRAME_SCORE_THR", threshold)
    Script(model, probs, masks=masks)
    result = video(model, T)
    row = result.track_ids.tolist().index(0)
    assert [s is not None for s in result.segmentations[row]] == [True, True, False]
    assert result.scores[row].item() == pytest.approx(2 / 3, abs=1e-5)


def test_frames_in_which_the_class_is_improbable_are_left_out():
    probs = SURE[:, None].repeat(1, T, 1)
    probs[1, 1] = 0.0
    probs[1, 1, 4] = 0.9  # another class than that of the clip does not count
    shown = {}
    for threshold in (0.0, 0.3):
        model = build("FRAME_SCORE_THR", threshold)
        Script(model, probs)
        shown[threshold] = [in_sight(tracks) for tracks in run(model, T)]
    assert shown[0.0] == [[0, 1, 2, 3]] * T
    assert shown[0.3] == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    "limit, shown", [(1.0, [0, 1, 2, 3]), (0.6, [0, 2, 3]), (0.8, [0, 1, 2, 3])]
)
def test_the_weaker_of_two_slots_on_one_object_is_left_out(limit, shown):
    """Slot 1 is 16 pixels wide, slot 0 has 12 of them: IoU 12 / 16."""
    boxes = PLACES[:, None].repeat(1, T, 1)
    boxes[0] = boxes[1]
    boxes[0, :, 2] -= 4
    model = build("DUP_MASK_IOU", limit)
    Script(model, SURE[:, None].repeat(1, T, 1), boxes)
    assert [tracks.track_ids.tolist() for tracks in run(model, T)] == [shown] * T


def test_duplicates_are_judged_over_the_whole_clip():
    boxes = PLACES[:, None].repeat(1, T, 1)
    boxes[1, 0] = boxes[0, 0]  # in one of three frames: IoU 1 / 5
    model = build("DUP_MASK_IOU", 0.5)
    Script(model, SURE[:, None].repeat(1, T, 1), boxes)
    assert all(len(tracks) == N for tracks in run(model, T))


def test_what_a_dropped_duplicate_covers_is_dropped_no_further():
    """0 covers 1, and 1 would cover 2, but 0 does not cover 2."""
    boxes = PLACES[:, None].repeat(1, T, 1)
    for i in range(3):
        boxes[i] = torch.tensor([8.0 * i, 0.0, 32.0 + 8 * i, 32.0])  # IoU 24 / 40, then 16 / 48
    model = build("DUP_MASK_IOU", 0.5)
    Script(model, SURE[:, None].repeat(1, T, 1), boxes)
    assert run(model, T)[0].track_ids.tolist() == [0, 2, 3]


def test_handcrafted_links_compare_the_frames_where_two_clips_meet():
    """In the last frame of the first clip every object has moved to the place on its right."""
    boxes, probs = PLACES[:, None].repeat(1, 6, 1), SURE[:, None].repeat(1, 6, 1)
    boxes[:, T - 1] = PLACES.roll(-1, 0)
    ids = {}
    for link in ("query", "handcraft"):
        model = build("LINK", link)
        script = Script(model, probs, boxes)
        ids[link] = [tracks.track_ids.tolist() for tracks in run(model, 6)]
        assert (script.calls[1]["queries"] is None) == (link == "handcraft")
    assert ids["query"] == [[0, 1, 2, 3]] * 6
    # Who stands in place 0 in the second clip is slot 3 of the first, and so on.
    assert ids["handcraft"] == [[0, 1, 2, 3]] * 3 + [[3, 0, 1, 2]] * 3


def test_weak_slots_are_not_linked():
    model = build("LINK", "handcraft", "LINK_SCORE", 0.65)
    Script(model, SURE)
    ids = [tracks.track_ids.tolist() for tracks in run(model, 6)]
    assert ids[-1][:3] == [0, 1, 2] and ids[-1][3] > 3


def test_unlike_slots_are_not_linked():
    """Slot 3 jumps by the width of the frame and has another class: affinity -2."""
    boxes, probs = PLACES[:, None].repeat(1, 6, 1), SURE[:, None].repeat(1, 6, 1)
    boxes[3, T:] = PLACES[0] - torch.tensor([24.0, 0.0, 24.0, 0.0])
    probs[3, T:] = probs[3, T:].roll(1, 1)
    for gate, linked in ((0.0, False), (-9.0, True)):
        model = build("LINK", "handcraft", "LINK_AFFINITY", gate)
        Script(model, probs, boxes)
        ids = [tracks.track_ids.tolist() for tracks in run(model, 6)]
        assert ids[-1][:3] == [0, 1, 2] and (ids[-1][3] == 3) == linked


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "EfficientVIS").glob("*.yaml")))
def test_published_configs_report_one_class_per_slot_by_its_mean_over_the_video(path):
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(path))
    node = cfg.TEST.VIS
    assert (node.MODE, node.AGGREGATE, node.OVER, node.MAX_TRACKS) == ("unique", "mean", "all", 10)


def test_the_softmax_variant_does_not_report_empty():
    model = build("CLS_LOSS", "softmax")
    script = Script(model, SURE)
    odds = torch.zeros(N, 12, K + 1)
    odds[..., -1] = math.log(15)  # "empty" with 15 / 20, each class with 1 / 20
    script.logits = odds
    probs = run(model, 1)[0].class_probs
    assert torch.allclose(probs, torch.full((N, K), 1 / 20), atol=1e-6)


def answers(model: Callable, clips: List[List[Tensor]]) -> Tensor:
    """Class probabilities (F, N, K) of frames that come in these clips."""
    state, result = model.start(SIZE), []
    for clip in clips:
        tracks, state = model.step(model.preprocess(clip), state)
        result += [one.class_probs for one in tracks]
    return torch.stack(result)


def test_the_memory_matters():
    """With the stages in place: a clip is seen differently after another one, and only then."""
    model = build()
    images = moving_squares(6)["image"]
    with torch.no_grad():
        both, alone = answers(model, [images[:3], images[3:]]), answers(model, [images[3:]])
        crafted = build("LINK", "handcraft")
        crafted.load_state_dict(model.state_dict())
        same = answers(crafted, [images[:3], images[3:]])
    assert (both[3:] / alone).log().abs().max() > 0.01
    assert torch.allclose(same[3:], alone, atol=1e-6) and torch.allclose(same[:3], both[:3])
