"""Tracks over windows that share frames: identities, merging by hand, holding back, memory."""

import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor

from vis_d2.inference import stream
from vis_d2.modeling import ClipLinker, ClipTracks, LinkedFrame, LinkerMemory
from vis_d2.modeling.clip_linker import _mean_iou

WIDTH = 8
NOWHERE = (0, 0)
LEFT, RIGHT, MIDDLE = (0, 3), (5, 8), (3, 5)
Span = Tuple[int, int]


def strip(span: Span, logit: float = 1.0) -> Tensor:
    """(1, WIDTH) logits, positive in the columns start <= x < end."""
    columns = torch.arange(WIDTH)
    inside = (columns >= span[0]) & (columns < span[1])
    return torch.where(inside, logit, -logit)[None]


def clip(
    slots: Sequence[Sequence[Span]],
    probs: Optional[Sequence[Sequence[float]]] = None,
    shown: Optional[Sequence[Sequence[bool]]] = None,
    logit: float = 1.0,
) -> ClipTracks:
    """Slots given by the columns they cover in each frame; one class."""
    masks = torch.stack([torch.stack([strip(span, logit) for span in slot]) for slot in slots])
    class_probs = torch.full(masks.shape[:2], 0.5) if probs is None else torch.tensor(probs)
    return ClipTracks(class_probs[..., None], masks, None if shown is None else torch.tensor(shown))


def still(*spans: Span, frames: int = 3, **more: Any) -> ClipTracks:
    """Slots that cover the same columns in all frames."""
    return clip([[span] * frames for span in spans], **more)


def run(linker: ClipLinker, *clips: ClipTracks) -> List[LinkedFrame]:
    frames, memory = [], linker.start()
    for one in clips:
        final, memory = linker.update(memory, one)
        frames += final
    return frames + linker.flush(memory)


def where(frame: LinkedFrame) -> Dict[int, Span]:
    """Track -> the columns it covers."""
    assert frame.track_ids.dtype == torch.int64
    assert frame.track_ids.tolist() == sorted(set(frame.track_ids.tolist()))
    found = {}
    for track, mask in zip(frame.track_ids.tolist(), frame.masks):
        columns = (mask[0] > 0).nonzero()[:, 0].tolist()
        found[track] = (columns[0], columns[-1] + 1) if columns else NOWHERE
    return found


def probs_of(frame: LinkedFrame) -> Dict[int, float]:
    return dict(zip(frame.track_ids.tolist(), frame.class_probs[:, 0].tolist()))


# --- identities ------------------------------------------------------------------------------


def test_objects_that_swap_slots_keep_their_identity():
    frames = run(ClipLinker(overlap=1), still(LEFT, RIGHT), still(RIGHT, LEFT), still(LEFT, RIGHT))
    assert [where(frame) for frame in frames] == [{0: LEFT, 1: RIGHT}] * 7


def test_moving_objects_are_followed_beyond_one_window():
    """Object 0 goes right, object 1 left; they never cover the same columns in one frame."""
    up = [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    down = [(6, 8), (5, 7), (4, 6), (1, 3), (0, 2)]
    first, second = clip([up[:3], down[:3]]), clip([down[2:], up[2:]])
    frames = run(ClipLinker(overlap=1), first, second)
    assert [where(frame) for frame in frames] == [{0: a, 1: b} for a, b in zip(up, down)]


def test_an_object_that_appears_starts_a_track():
    first, second = clip([[LEFT] * 3]), clip([[NOWHERE, RIGHT, RIGHT], [LEFT] * 3])
    frames = run(ClipLinker(overlap=1), first, second)
    assert where(frames[1]) == {0: LEFT}
    (new,) = set(where(frames[3])) - {0}
    assert where(frames[2]) == {0: LEFT, new: NOWHERE}
    assert where(frames[3]) == where(frames[4]) == {0: LEFT, new: RIGHT}


def test_a_track_whose_slot_is_taken_by_another_object_ends():
    frames = run(ClipLinker(overlap=1), still(LEFT), still(RIGHT), still(RIGHT))
    assert [where(frame) for frame in frames] == [
        {0: LEFT},
        {0: LEFT},
        {0: LEFT, 1: RIGHT},  # held back, comes out although the track has ended
        *[{1: RIGHT}] * 4,
    ]


def test_a_track_that_ended_does_not_come_back():
    """Overlap 2, stride 1: frame 2 is still held back with the first track when LEFT is again."""
    first, second, third = still(LEFT), still(RIGHT), still(LEFT)
    frames = run(ClipLinker(overlap=2), first, second, third)
    assert where(frames[2])[0] == LEFT
    assert where(frames[4]) == {2: LEFT}


def test_no_id_is_used_twice():
    linker, seen = ClipLinker(overlap=1), []
    memory = linker.start()
    for spans in [(LEFT, RIGHT), (MIDDLE,), (LEFT, RIGHT), (MIDDLE,)]:
        _, memory = linker.update(memory, still(*spans))
        seen += memory.alive.tolist()
    assert len(seen) == len(set(seen)) == 6


def test_a_new_id_is_not_that_of_a_track_that_started_beside_a_linked_one():
    linker, memory = ClipLinker(overlap=1), ClipLinker(overlap=1).start()
    alive = []
    for spans in [(LEFT,), (LEFT, RIGHT), (MIDDLE,)]:
        _, memory = linker.update(memory, still(*spans))
        alive.append(memory.alive.tolist())
    (first,), (again, beside), (new,) = alive
    assert first == again and len({first, beside, new}) == 3


def test_without_overlap_every_window_starts_tracks_and_nothing_is_held_back():
    linker = ClipLinker(overlap=0)
    first, memory = linker.update(linker.start(), still(LEFT, RIGHT))
    assert len(first) == 3 and linker.flush(memory) == []
    second, memory = linker.update(memory, still(LEFT, RIGHT))
    assert len(second) == 3 and linker.flush(memory) == []
    assert not set(where(first[0])) & set(where(second[0]))


# --- which pairs are linked ------------------------------------------------------------------


@pytest.mark.parametrize("threshold, linked", [(0.25, True), (0.26, False)])
def test_pairs_below_the_threshold_are_not_linked(threshold, linked):
    # Columns 0..3 and column 0: IoU 1 / 4.
    frames = run(ClipLinker(overlap=1, threshold=threshold), still((0, 4)), still((0, 1)))
    assert (set(where(frames[-1])) == {0}) is linked


def test_the_default_threshold_is_a_tenth():
    # Columns 0..7 and column 0: 1 / 8 is enough.
    assert set(where(run(ClipLinker(overlap=1), still((0, 8)), still((0, 1)))[-1])) == {0}
    assert ClipLinker(overlap=1).threshold == 0.1


@pytest.mark.parametrize("threshold, linked", [(0.5, True), (0.51, False)])
def test_the_iou_is_a_mean_over_shared_frames(threshold, linked):
    """Frame IoUs 1 and 0: their mean is 1 / 2; over both frames' pixels it would be 1 / 7."""
    first, second = clip([[LEFT, (7, 8), (0, 3)]]), clip([[(7, 8), (3, 6), (3, 6)]])
    frames = run(ClipLinker(overlap=2, threshold=threshold), first, second)
    assert (set(where(frames[-1])) == {0}) is linked


def test_frames_that_are_empty_in_both_windows_do_not_count():
    """Nothing, nothing, LEFT in both: IoU 1, where counting the empty frames would give 1 / 3."""
    first = clip([[RIGHT, NOWHERE, NOWHERE, LEFT]])
    second = clip([[NOWHERE, NOWHERE, LEFT, LEFT]])
    frames = run(ClipLinker(overlap=3, threshold=0.9), first, second)
    assert set(where(frames[-1])) == {0}


def test_a_frame_that_is_empty_in_one_window_counts():
    first, second = clip([[LEFT, NOWHERE, LEFT]]), clip([[LEFT, LEFT, LEFT]])
    assert set(where(run(ClipLinker(overlap=2, threshold=0.5), first, second)[-1])) == {0}
    assert set(where(run(ClipLinker(overlap=2, threshold=0.51), first, second)[-1])) == {1}


def uneven(*frames: Sequence[float]) -> ClipTracks:
    """One slot with these probabilities of a frame's pixels."""
    masks = torch.tensor(frames).logit()[None, :, None]  # (T, w) -> (1, T, 1, w)
    return ClipTracks(torch.full((1, len(frames), 1), 0.5), masks)


def soft_iou(linker: ClipLinker, *clips: ClipTracks) -> float:
    """Of the first track with the first slot of the last window."""
    memory = linker.start()
    for one in clips[:-1]:
        _, memory = linker.update(memory, one)
    return float(_mean_iou(memory, clips[-1], soft=True)[0, 0])


def test_the_soft_iou_is_one_of_probabilities():
    """Pixels .8 and .2 against .5 and .5: (.4 + .1) / (.9 + .6) = 1 / 3."""
    linker = ClipLinker(overlap=1, soft=True)
    assert soft_iou(linker, uneven([0.8, 0.2]), uneven([0.5, 0.5])) == pytest.approx(1 / 3)
    # Even with itself less than 1: (.64 + .04) / (1.6 - .64 + .4 - .04).
    assert soft_iou(linker, *[uneven([0.8, 0.2])] * 2) == pytest.approx(0.68 / 1.32)


def test_the_soft_iou_is_a_mean_over_shared_frames():
    """Frame 1: 1 / 3 as above; frame 2: .01 / .19 in both pixels."""
    clips = uneven([0.8, 0.2], [0.1, 0.1]), uneven([0.5, 0.5], [0.1, 0.1])
    expected = (1 / 3 + 0.01 / 0.19) / 2
    assert soft_iou(ClipLinker(overlap=2, soft=True), *clips) == pytest.approx(expected)


def test_a_track_has_the_probabilities_of_its_mean_logits():
    """Windows 0 and 1 share frames 1 and 2, window 2 has frame 2 first: logits 2 and 0, mean 1."""
    probs = torch.full((1, 3, 1), 0.5)
    clips = [ClipTracks(probs, torch.full((1, 3, 1, 1), x)) for x in (2.0, 0.0, 0.0)]
    linker = ClipLinker(overlap=2, soft=True)
    (p, q) = torch.tensor([1.0, 0.0]).sigmoid().tolist()
    seen_twice = p * q / (p + q - p * q)
    seen_once = 0.25 / 0.75  # frame 3: logits 0 and 0
    found = soft_iou(linker, *clips)
    assert found == pytest.approx((seen_twice + seen_once) / 2)


def test_soft_masks_link_what_is_hardly_there():
    """No pixel is above one half, so that hard masks have nothing in common."""
    clips = uneven([0.4, 0.01], [0.4, 0.01]), uneven([0.45, 0.01], [0.45, 0.01])
    ids = {}
    for soft in (False, True):
        frames = run(ClipLinker(overlap=1, threshold=0.01, soft=soft), *clips)
        ids[soft] = frames[-1].track_ids.tolist()
    assert ids == {False: [1], True: [0]}


def test_a_slot_that_is_not_shown_has_no_soft_mask():
    first = still(LEFT, frames=2)
    hidden = still(LEFT, frames=2, shown=[[False, True]])
    frames = run(ClipLinker(overlap=1, threshold=0.01, soft=True), first, hidden)
    assert frames[-1].track_ids.tolist() == [1]
    frames = run(ClipLinker(overlap=1, threshold=0.01, soft=True), first, first)
    assert frames[-1].track_ids.tolist() == [0]


def test_soft_masks_of_other_objects_do_not_decide():
    """Slots change places; each has a little of the other everywhere."""
    for logit in (1.0, 3.0):
        clips = [still(LEFT, RIGHT, logit=logit), still(RIGHT, LEFT, logit=logit)]
        frames = run(ClipLinker(overlap=1, threshold=0.01, soft=True), *clips)
        assert [where(frame) for frame in frames] == [{0: LEFT, 1: RIGHT}] * 5


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_masks_with_nothing_in_common_are_not_linked(threshold):
    for before, now in [(LEFT, RIGHT), (NOWHERE, NOWHERE), (LEFT, NOWHERE)]:
        frames = run(ClipLinker(overlap=1, threshold=threshold), still(before), still(now))
        assert set(where(frames[-1])) == {1}, (before, now)


def linked(first: ClipTracks, second: ClipTracks, threshold: float = 0.1) -> List[int]:
    """Tracks of the slots of the second window; the first window's are 0, 1, ..."""
    linker = ClipLinker(overlap=1, threshold=threshold)
    _, memory = linker.update(linker.start(), first)
    return linker.update(memory, second)[1].alive.tolist()


def test_the_total_decides_not_the_best_pair():
    # IoU of track 0 with the slots: 3/4 and 2/5; of track 1: 2/4 and 0. 2/5 + 2/4 > 3/4 + 0.
    assert linked(still((2, 6), (1, 4)), still((2, 5), (4, 7))) == [1, 0]


def test_pairs_below_the_threshold_do_not_decide_who_gets_the_others():
    # IoU of track 0 with the slots: 3/6 and 1/8; of track 1: 2/5 and 0. 1/8 + 2/5 > 3/6 + 0, but
    # where 1/8 is too small for a link, 3/6 is the best that is left.
    first, second = still((0, 6), (1, 5)), still((0, 3), (5, 8))
    assert linked(first, second, threshold=0.1) == [1, 0]
    one, other = linked(first, second, threshold=0.2)
    assert one == 0 and other > 1


def test_the_iou_counts_pixels_exactly_under_autocast():
    """5,000 and 4,999 pixels: half precision would round both, and 4,999 / 5,000 is above."""
    first = torch.ones(1, 1, 50, 100)
    second = first.clone()
    second[..., 0, 0] = -1
    probs = torch.ones(1, 1, 1)
    later = ClipTracks(probs.expand(1, 2, 1), second.expand(1, 2, 50, 100))
    with torch.autocast("cpu", torch.bfloat16):
        for threshold, tracks in [(0.9997, [0]), (0.9999, [1])]:
            assert linked(ClipTracks(probs, first), later, threshold) == tracks


# --- merging ---------------------------------------------------------------------------------


def test_shared_frames_are_averaged():
    """Probabilities (0.2 + 0.6) / 2 and logits (1 + 3) / 2 in frame 1; the others as they were."""
    first = clip([[LEFT, LEFT]], probs=[[0.4, 0.2]], logit=1.0)
    second = clip([[LEFT, LEFT]], probs=[[0.6, 0.8]], logit=3.0)
    frames = run(ClipLinker(overlap=1), first, second)
    assert [probs_of(frame)[0] for frame in frames] == pytest.approx([0.4, 0.4, 0.8])
    for frame, logit in zip(frames, [1.0, 2.0, 3.0]):
        torch.testing.assert_close(frame.masks, strip(LEFT, logit)[None])


def test_each_of_three_windows_counts_the_same():
    """Window 3, stride 1. Frame 2: (0.1 + 0.2 + 0.6) / 3, not ((0.1 + 0.2) / 2 + 0.6) / 2."""
    first = still(LEFT, probs=[[0.1] * 3], logit=1.0)
    second = still(LEFT, probs=[[0.2] * 3], logit=2.0)
    third = still(LEFT, probs=[[0.6] * 3], logit=6.0)
    frames = run(ClipLinker(overlap=2), first, second, third)
    means = [0.1, 0.15, 0.3, 0.4, 0.6]
    assert [probs_of(frame)[0] for frame in frames] == pytest.approx(means)
    for frame, mean in zip(frames, means):
        torch.testing.assert_close(frame.masks, strip(LEFT, 10 * mean)[None])


def test_several_tracks_and_classes_are_merged_row_by_row():
    """Slots swapped: track 0 is slot 0, then slot 1. Two classes, four different numbers."""
    masks = torch.stack([strip(LEFT), strip(RIGHT)])[:, None]  # (2, 1, WIDTH) -> (2, 1, 1, WIDTH)
    first = ClipTracks(torch.tensor([[[0.0, 0.2]], [[0.4, 0.6]]]), masks)
    second = ClipTracks(
        torch.tensor([[[0.2, 0.8]], [[1.0, 0.4]]]).repeat(1, 2, 1),
        masks.flip(0).repeat(1, 2, 1, 1),
    )
    shared, _ = run(ClipLinker(overlap=1), first, second)
    assert shared.track_ids.tolist() == [0, 1]
    torch.testing.assert_close(shared.class_probs, torch.tensor([[0.5, 0.3], [0.3, 0.7]]))


def test_a_track_that_is_not_linked_keeps_its_numbers():
    first, second = still(LEFT, probs=[[0.3] * 3]), still(RIGHT, probs=[[0.9] * 3])
    shared = run(ClipLinker(overlap=1), first, second)[2]
    assert probs_of(shared) == pytest.approx({0: 0.3, 1: 0.9})


# --- slots that claim to be absent -----------------------------------------------------------


def test_only_windows_that_show_a_track_are_averaged():
    """Shared frames 1 to 4: both windows show it, the first does, the second does, none does."""
    first = still(LEFT, frames=5, probs=[[0.2] * 5], shown=[[True, True, True, False, False]])
    second = still(LEFT, frames=5, probs=[[0.6] * 5], shown=[[True, False, True, False, True]])
    frames = run(ClipLinker(overlap=4), first, second)
    expected = [{0: 0.2}, {0: 0.4}, {0: 0.2}, {0: 0.6}, {}, {0: 0.6}]
    assert [probs_of(frame) for frame in frames] == [pytest.approx(e) for e in expected]
    assert all(where(frame) in ({0: LEFT}, {}) for frame in frames)


def test_a_mask_that_is_not_shown_links_nothing():
    seen, hidden = [[True] * 3], [[True, True, False]]
    for before, now in [(hidden, seen), (seen, [[False, True, True]])]:
        frames = run(ClipLinker(overlap=1), still(LEFT, shown=before), still(LEFT, shown=now))
        assert set(where(frames[-1])) == {1}


def test_rows_stay_in_order_of_the_tracks_when_some_are_hidden():
    first = still(LEFT, MIDDLE, RIGHT)
    shown = [[True] * 3, [True] * 3, [True, False, True]]
    frames = run(ClipLinker(overlap=1), first, still(RIGHT, LEFT, MIDDLE, shown=shown))
    assert where(frames[3]) == {0: LEFT, 2: RIGHT}
    assert where(frames[4]) == {0: LEFT, 1: MIDDLE, 2: RIGHT}


def nothing(frames: int = 3) -> ClipTracks:
    return ClipTracks(torch.zeros(0, frames, 1), torch.zeros(0, frames, 1, WIDTH))


def test_windows_without_slots():
    frames = run(ClipLinker(overlap=1), nothing(), still(LEFT), nothing(), still(LEFT))
    found = [where(frame) for frame in frames]
    assert found == [{}, {}, {0: LEFT}, {0: LEFT}, {0: LEFT}, {}, *[{1: LEFT}] * 3]
    assert frames[0].class_probs.shape == (0, 1) and frames[0].masks.shape == (0, 1, WIDTH)
    shown = torch.zeros(0, 3, dtype=torch.bool)
    assert len(run(ClipLinker(overlap=1), dataclasses.replace(nothing(), shown=shown))) == 3


def test_a_window_whose_slots_are_all_hidden():
    hidden = still(LEFT, shown=[[False] * 3])
    frames = run(ClipLinker(overlap=1), hidden, hidden)
    assert [where(frame) for frame in frames] == [{}] * 5


# --- which frames leave when -----------------------------------------------------------------


def test_the_shared_frames_wait_for_the_next_window():
    linker = ClipLinker(overlap=2)
    final, memory = linker.update(linker.start(), still(LEFT, frames=5))
    assert len(final) == 3 and len(linker.flush(memory)) == 2
    final, memory = linker.update(memory, still(LEFT, frames=5))
    assert len(final) == 3 and len(linker.flush(memory)) == 2
    final, memory = linker.update(memory, still(LEFT, frames=3))  # the last one is shorter
    assert len(final) == 1 and len(linker.flush(memory)) == 2


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_video_shorter_than_the_overlap(length):
    linker = ClipLinker(overlap=3)
    final, memory = linker.update(linker.start(), still(LEFT, frames=length))
    assert final == []
    assert [where(frame) for frame in linker.flush(memory)] == [{0: LEFT}] * length


def test_nothing_seen_gives_nothing():
    linker = ClipLinker(overlap=3)
    assert linker.flush(linker.start()) == []


class Toy:
    """Two still objects whose slots change places in every window; frames are numbered.

    The probability of an object tells frame and window: the frame number, over 1000, plus a bit
    that grows with the window, so that the mean over windows can be worked out.
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window, self.stride = window, stride
        self.linker = ClipLinker(overlap=window - stride)

    def preprocess(self, frames: List[Tensor]) -> ImageList:
        return ImageList.from_tensors([f.float() for f in frames])

    def start(self, output_size: Tuple[int, int]) -> Tuple[int, LinkerMemory]:
        return 0, self.linker.start()

    def step(self, images: ImageList, state: Tuple[int, LinkerMemory]) -> Any:
        k, memory = state
        numbers = images.tensor[:, 0, 0, 0]
        spans = (LEFT, RIGHT) if k % 2 == 0 else (RIGHT, LEFT)
        masks = torch.stack([strip(span) for span in spans])
        probs = (numbers / 1000 + k / 100)[None, :, None].expand(2, -1, 1)  # (T,) -> (2, T, 1)
        # (2, 1, WIDTH) -> (2, T, 1, WIDTH)
        tracks = ClipTracks(probs, masks[:, None].expand(-1, len(numbers), -1, -1))
        final, memory = self.linker.update(memory, tracks)
        return map(self._finish, final), (k + 1, memory)

    def flush(self, state: Tuple[int, LinkerMemory]) -> Iterator[Instances]:
        return map(self._finish, self.linker.flush(state[1]))

    def _finish(self, frame: LinkedFrame) -> Instances:
        masks = frame.masks > 0
        return Instances(
            (1, WIDTH),
            track_ids=frame.track_ids,
            class_probs=frame.class_probs,
            pred_masks=masks,
        )


def numbered(length: int) -> Iterator[Tensor]:
    for t in range(length):
        yield torch.full((3, 1, 1), t, dtype=torch.uint8)


def windows_over(window: int, stride: int, length: int) -> List[List[int]]:
    """For each frame the windows that see it, written down without the loop."""
    count = 1 + max(0, -(-(length - window) // stride))
    return [
        [k for k in range(count) if k * stride <= t < k * stride + window] for t in range(length)
    ]


@pytest.mark.parametrize("window, stride", [(w, s) for w in range(1, 7) for s in range(1, w + 1)])
def test_every_frame_leaves_once_in_order_with_the_mean_of_its_windows(window, stride):
    for length in range(1, 21):
        out = list(stream(Toy(window, stride), numbered(length), (1, WIDTH)))
        assert [t for t, _ in out] == list(range(length))
        for (t, tracks), seen in zip(out, windows_over(window, stride, length)):
            mean = t / 1000 + sum(seen) / len(seen) / 100
            assert tracks.class_probs[:, 0].tolist() == pytest.approx([mean] * 2)
            if window > stride:
                assert tracks.track_ids.tolist() == [0, 1]
                columns = [mask[0].nonzero()[0].item() for mask in tracks.pred_masks]
                assert columns == [LEFT[0], RIGHT[0]]


# --- memory ----------------------------------------------------------------------------------


def tensors(value: Any) -> List[Tensor]:
    """All tensors in nested data classes, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


def random_clip(frames: int, slots: int = 4) -> ClipTracks:
    shown = torch.rand(slots, frames) > 0.3
    return ClipTracks(torch.rand(slots, frames, 2), torch.randn(slots, frames, 2, WIDTH), shown)


def test_the_memory_is_not_changed_by_an_update():
    linker = ClipLinker(overlap=2)
    _, memory = linker.update(linker.start(), random_clip(3))
    before = [t.clone() for t in tensors(memory)]
    second = random_clip(3)
    once, again = linker.update(memory, second), linker.update(memory, second)
    for a, b in zip(tensors(once), tensors(again)):
        assert torch.equal(a, b)
    assert len(tensors(once)) == len(tensors(again))
    assert once[1].next_id == again[1].next_id
    linker.flush(memory)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(memory)))


def test_nothing_that_is_held_or_given_away_is_part_of_the_window():
    """Neither what the model writes there later, nor its size, matters afterwards."""
    linker = ClipLinker(overlap=2)
    first = still(LEFT, RIGHT, frames=4)
    final, memory = linker.update(linker.start(), first)
    first.masks.zero_()
    first.class_probs.zero_()
    frames = [*final, *linker.flush(memory)]
    assert [where(frame) for frame in frames] == [{0: LEFT, 1: RIGHT}] * 4
    assert [probs_of(frame) for frame in frames] == [{0: 0.5, 1: 0.5}] * 4
    for held in tensors(memory):
        assert held.untyped_storage().nbytes() == held.numel() * held.element_size()


def test_the_memory_of_3000_frames_does_not_grow():
    linker = ClipLinker(overlap=6)
    memory, frames, numbers, elements = linker.start(), 0, [], []
    while frames < 3000:
        final, memory = linker.update(memory, random_clip(10))
        frames += len(final)
        numbers.append(len(tensors(memory)))
        elements.append(sum(t.numel() for t in tensors(memory)))
    assert memory.next_id > 2000  # tracks came and went all the time
    assert set(numbers) == {6 * 4 + 1}
    # A frame is seen by three windows of 4 slots: at most 12 rows of 16 + 2 numbers, id and count.
    assert max(elements) <= 6 * 12 * (16 + 2 + 2) + 4
    assert max(elements[-100:]) <= max(elements[:-100])


def test_no_graph_is_kept():
    window = still(LEFT)
    window.masks.requires_grad_()
    final, memory = ClipLinker(overlap=1).update(ClipLinker(overlap=1).start(), window)
    assert not any(t.requires_grad for t in tensors([final, memory]))


def test_half_precision_stays_half_precision():
    first = ClipTracks(torch.ones(1, 3, 1).half(), still(LEFT).masks.half())
    frames = run(ClipLinker(overlap=1), first, first)
    assert {f.masks.dtype for f in frames} == {f.class_probs.dtype for f in frames}
    assert {f.masks.dtype for f in frames} == {torch.float16}


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap, threshold", [(-1, 0.1), (1, -0.1), (1, 1.1)])
def test_arguments_out_of_range(overlap, threshold):
    with pytest.raises(ValueError, match=rf"overlap {overlap}, threshold {threshold}.*expected"):
        ClipLinker(overlap=overlap, threshold=threshold)


def test_a_window_without_a_new_frame():
    linker = ClipLinker(overlap=2)
    _, memory = linker.update(linker.start(), still(LEFT))
    with pytest.raises(ValueError, match="window of 2 frames after one that held 2 back"):
        linker.update(memory, still(LEFT, frames=2))


def test_a_window_after_one_shorter_than_the_overlap():
    linker = ClipLinker(overlap=2)
    _, memory = linker.update(linker.start(), still(LEFT, frames=1))
    with pytest.raises(ValueError, match="window of 3 frames after one that held 1 back"):
        linker.update(memory, still(LEFT))


def test_parts_of_a_window_that_do_not_fit():
    masks = torch.zeros(2, 3, 1, WIDTH)
    for probs, shown in [
        (torch.zeros(2, 4, 1), None),
        (torch.zeros(1, 3, 1), None),
        (torch.zeros(2, 1), None),
        (torch.zeros(2, 3, 1), torch.zeros(3, 3, dtype=torch.bool)),
    ]:
        with pytest.raises(ValueError, match=r"expected class_probs \(N, T, K\).*found"):
            ClipTracks(probs, masks, shown)


def test_boxes_are_averaged_over_the_windows_that_show_the_track():
    linker = ClipLinker(overlap=1)
    first, second = still(LEFT, frames=2), still(LEFT, frames=2)
    boxes = (
        torch.tensor([[[0.0, 0, 4, 4], [1, 0, 5, 4]]]),
        torch.tensor([[[3.0, 2, 7, 8], [4, 0, 8, 4]]]),
    )
    clips = [dataclasses.replace(c, boxes=b) for c, b in zip((first, second), boxes)]
    begin, memory = linker.update(linker.start(), clips[0])
    middle, memory = linker.update(memory, clips[1])
    found = [frame.boxes.tolist() for frame in (*begin, *middle, *linker.flush(memory))]
    assert found == [[[0, 0, 4, 4]], [[2, 1, 6, 6]], [[4, 0, 8, 4]]]
    assert linker.flush(linker.update(linker.start(), first)[1])[0].boxes is None
    with pytest.raises(ValueError, match=r"boxes \(N, T, 4\).*found"):
        dataclasses.replace(first, boxes=boxes[0][:, :1])
