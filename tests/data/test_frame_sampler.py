from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from vis_d2.data.frame_sampler import (
    AdjacentPair,
    AllFrames,
    ClipPair,
    CyclicWindow,
    KeyAndFar,
    KeyReference,
    Neighbours,
    Past,
    Strided,
    Window,
    build_sampler,
)

lengths = st.integers(1, 40)
counts = st.integers(1, 8)
distances = st.integers(1, 10)
seeds = st.integers(0, 2**32 - 1)
fast = settings(max_examples=60, deadline=None)


def draws(sampler, length, n=200):
    rng = np.random.default_rng(0)
    return [sampler(length, rng) for _ in range(n)]


@fast
@given(lengths, counts, distances, seeds)
def test_window_is_a_run_with_one_step(length, count, step, seed):
    frames = Window(num_frames=count, max_step=step)(length, np.random.default_rng(seed))
    assert len(frames) == count and 0 <= frames[0] and frames[-1] < length
    gaps = np.diff(frames)
    if count <= length:
        assert len(set(gaps.tolist())) <= 1 and all(1 <= gap <= step for gap in gaps)
    else:  # too short: every frame once, then the last one again
        assert frames == [*range(length), *[length - 1] * (count - length)]


def test_window_reaches_every_start_and_every_step():
    frames = draws(Window(num_frames=3, max_step=2), 6)
    assert {tuple(f) for f in frames} == {
        (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 2, 4), (1, 3, 5),
    }  # fmt: skip


@fast
@given(lengths, distances, seeds)
def test_key_reference_are_two_frames_close_to_each_other(length, distance, seed):
    reference, key = KeyReference(max_distance=distance)(length, np.random.default_rng(seed))
    assert 0 <= min(reference, key) and max(reference, key) < length
    assert abs(reference - key) <= distance
    assert (reference == key) == (length == 1)


def test_key_is_uniform_and_reference_on_both_sides():
    pairs = draws(KeyReference(max_distance=2), 4, 2000)
    keys = np.bincount([key for _, key in pairs])
    assert keys.min() > 400
    assert {r - k for r, k in pairs} == {-2, -1, 1, 2}


@fast
@given(lengths, counts, distances, seeds)
def test_neighbours_surround_one_key(length, count, distance, seed):
    frames = Neighbours(num_frames=count, max_distance=distance)(
        length, np.random.default_rng(seed)
    )
    assert len(frames) == count and frames == sorted(frames)
    assert 0 <= frames[0] and frames[-1] < length and frames[-1] - frames[0] <= 2 * distance
    if count - 1 <= min(distance, length - 1):  # any surroundings are large enough
        assert len(set(frames)) == count


@fast
@given(lengths, distances, seeds)
def test_adjacent_pair_is_earlier_then_later(length, gap, seed):
    earlier, later = AdjacentPair(max_gap=gap)(length, np.random.default_rng(seed))
    if length == 1:
        assert (earlier, later) == (0, 0)
    else:
        assert 0 <= earlier < later < length and later - earlier <= gap


def test_adjacent_pair_covers_every_pair():
    assert {tuple(p) for p in draws(AdjacentPair(), 4)} == {(0, 1), (1, 2), (2, 3)}
    assert {tuple(p) for p in draws(AdjacentPair(max_gap=3), 4)} == {
        (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3),
    }  # fmt: skip


def run_from(start: int, count: int, length: int):
    """Consecutive frames; where the video ends, its last frame again."""
    return [min(start + i, length - 1) for i in range(count)]


@pytest.mark.parametrize("gap", [1, 2, 5])
@pytest.mark.parametrize("count", range(1, 9))
def test_clip_pair_are_two_runs_one_after_the_other(count, gap):
    sampler = ClipPair(num_frames=count, max_gap=gap)
    for length in range(1, 31):
        orders, seen = set(), set()
        for frames in draws(sampler, length, 60):
            first, second = frames[:count], frames[count:]
            assert len(frames) == 2 * count
            assert first == run_from(first[0], count, length)
            assert second == run_from(second[0], count, length)
            seen |= set(frames)
            if length <= count:
                # All there is comes first; the rest only fills the list up.
                assert first[0] == 0 and set(second) == {length - 1}
                continue
            early, late = sorted([first, second])
            assert early[-1] == early[0] + count - 1  # only the later run may be short
            assert 1 <= late[0] - early[-1] <= gap
            orders.add(first == early)
        assert length <= count or orders == {True, False}
        # 60 draws reach every start of a short video.
        assert length - count > 6 or seen == set(range(length))


def test_clip_pair_covers_every_pair():
    found = {tuple(f) for f in draws(ClipPair(num_frames=2), 5)}
    assert found == {
        (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 4),
        (2, 3, 0, 1), (3, 4, 1, 2), (4, 4, 2, 3),
    }  # fmt: skip
    earlier_first = {tuple(sorted(f)) for f in draws(ClipPair(num_frames=2, max_gap=2), 5)}
    # A gap that reaches over the end of the video falls back to none: (2, 3, 5, 5) is not there.
    assert earlier_first == {(0, 1, 2, 3), (0, 1, 3, 4), (1, 2, 3, 4), (1, 2, 4, 4), (2, 3, 4, 4)}


@pytest.mark.parametrize("length, expected", [(1, [0] * 6), (2, [0, 1, 1, 1, 1, 1])])
def test_clip_pair_of_a_video_shorter_than_one_run(length, expected):
    assert draws(ClipPair(num_frames=3, max_gap=4), length, 20) == [expected] * 20


def test_clip_pair_of_a_video_as_long_as_one_run():
    assert draws(ClipPair(num_frames=3), 3, 20) == [[0, 1, 2, 2, 2, 2]] * 20


def test_clip_pair_takes_either_order_and_every_start_equally_often():
    frames = draws(ClipPair(num_frames=2), 6, 2000)
    starts = [min(f) for f in frames]
    assert np.bincount(starts, minlength=4).min() > 400  # 0, 1, 2, 3: 500 each
    assert 900 < sum(f[0] == start for f, start in zip(frames, starts)) < 1100


@fast
@given(lengths, counts, seeds)
def test_cyclic_window_goes_on_with_the_first_frame_after_the_last(length, count, seed):
    frames = CyclicWindow(num_frames=count)(length, np.random.default_rng(seed))
    assert len(frames) == count and all(0 <= t < length for t in frames)
    assert all(b == (a + 1) % length for a, b in zip(frames, frames[1:]))


def test_cyclic_window_by_hand():
    assert {tuple(f) for f in draws(CyclicWindow(num_frames=3), 4)} == {
        (2, 3, 0), (3, 0, 1), (0, 1, 2), (1, 2, 3),
    }  # fmt: skip
    # Shorter than the clip: tiled, whichever frame is the last.
    assert {tuple(f) for f in draws(CyclicWindow(num_frames=5), 2)} == {
        (0, 1, 0, 1, 0), (1, 0, 1, 0, 1),
    }  # fmt: skip
    assert draws(CyclicWindow(num_frames=4), 1, 5) == [[0] * 4] * 5
    lasts = [f[-1] for f in draws(CyclicWindow(num_frames=3), 4, 2000)]
    assert np.bincount(lasts).min() > 400  # 500 each


@fast
@given(lengths, counts, distances, seeds)
def test_past_is_a_run_that_ends_anywhere_and_stops_at_the_first_frame(length, count, step, seed):
    frames = Past(num_frames=count, step=step)(length, np.random.default_rng(seed))
    assert len(frames) == count and 0 <= frames[-1] < length
    assert frames == [max(frames[-1] - step * i, 0) for i in range(count - 1, -1, -1)]


def test_past_ends_at_every_frame_equally_often():
    frames = draws(Past(num_frames=3), 4, 2000)
    assert {tuple(f) for f in frames} == {(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)}
    assert np.bincount([f[-1] for f in frames]).min() > 400  # 500 each
    assert {tuple(f) for f in draws(Past(num_frames=3, step=2), 4)} == {
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 3),
    }  # fmt: skip


@fast
@given(lengths, st.integers(3, 8), st.integers(1, 3), seeds)
def test_key_and_far_has_a_close_triple_and_the_rest_outside_of_it(length, count, reach, seed):
    frames = KeyAndFar(num_frames=count, max_distance=reach)(length, np.random.default_rng(seed))
    assert len(frames) == count and frames == sorted(frames)
    assert 0 <= frames[0] and frames[-1] < length
    if count <= length // 3:  # the rest is long enough: only the first and the latest come again
        most = np.bincount(frames)
        assert (most > 1).sum() <= 2 and most.max() <= 3


def test_key_and_far_by_hand():
    sampler = KeyAndFar(num_frames=3, max_distance=1)
    assert {tuple(f) for f in draws(sampler, 4)} == {(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 3)}
    found = {tuple(f) for f in draws(KeyAndFar(num_frames=4, max_distance=1), 4, 500)}
    assert found == {
        (0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 1, 3),  # key 0; 1, the latest, comes again, or 2, or 3
        (0, 1, 2, 2), (0, 1, 2, 3),                # key 1
        (0, 1, 2, 3), (1, 2, 3, 3),                # key 2
        (0, 2, 3, 3), (1, 2, 3, 3), (2, 3, 3, 3),  # key 3, which is its own later neighbour
    }  # fmt: skip


def test_key_and_far_takes_every_far_frame_equally_often_and_none_twice():
    expected = Counter()
    for key in range(7):
        low, high = max(key - 1, 0), min(key + 1, 6)
        pairs = list(combinations([t for t in range(7) if t < low or t >= high], 2))
        for pair in pairs:
            expected[tuple(sorted([low, key, high, *pair]))] += 1 / 7 / len(pairs)
    found = Counter(map(tuple, draws(KeyAndFar(num_frames=5, max_distance=1), 7, 10000)))
    assert set(found) == set(expected)
    assert all(abs(found[f] / 10000 - share) < 0.012 for f, share in expected.items())


def test_key_and_far_reaches_its_neighbours_up_to_the_distance_on_each_side():
    triples = draws(KeyAndFar(num_frames=3, max_distance=3), 40, 3000)
    inner = [f for f in triples if 3 <= f[1] < 37]
    for side in (0, 1):
        steps = np.bincount([f[side + 1] - f[side] for f in inner])
        assert len(steps) == 4 and steps[0] == 0 and steps[1:].min() > 0.28 * len(inner)
    keys = np.bincount([f[1] for f in triples], minlength=40)
    assert keys.min() > 40  # 75 each


@pytest.mark.parametrize(
    "length, count, times",
    [(1, 5, {5}), (2, 5, {2, 3}), (3, 8, {1, 2, 3, 4}), (2, 9, {4, 5})],
)
def test_key_and_far_in_a_video_that_is_too_short(length, count, times):
    for frames in draws(KeyAndFar(num_frames=count, max_distance=3), length, 100):
        assert len(frames) == count and set(frames) == set(range(length))
        assert set(np.bincount(frames).tolist()) <= times


def test_key_and_far_needs_three_frames():
    with pytest.raises(ValueError, match="NUM_FRAMES is 2, but KeyAndFar gives at least 3 frames"):
        KeyAndFar(num_frames=2, max_distance=3)


def test_all_frames():
    assert AllFrames()(4, np.random.default_rng(0)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "sampler",
    [
        Window(num_frames=2),
        KeyReference(max_distance=1),
        Neighbours(num_frames=2, max_distance=1),
        AdjacentPair(),
        AllFrames(),
        ClipPair(num_frames=2, max_gap=2),
        Strided(sampler=Window(num_frames=3), step=4),
        CyclicWindow(num_frames=2),
        Past(num_frames=3),
        KeyAndFar(num_frames=5, max_distance=3),
    ],
)
def test_video_without_frames_is_an_error_and_the_generator_decides(sampler):
    with pytest.raises(ValueError, match="0 frames"):
        sampler(0, np.random.default_rng(0))
    assert draws(sampler, 30, 20) == draws(sampler, 30, 20)
    assert all(type(t) is int for t in sampler(30, np.random.default_rng(0)))


def test_strided_takes_a_thinned_video_from_every_start():
    sampler = Strided(sampler=Window(num_frames=3), step=4)
    # 0, 4, 8, 12 or 1, 5, 9 or ...: every frame of 13 can be drawn.
    starts = {(s, s + 4, s + 8) for s in (0, 4, 1, 2, 3)}
    assert {tuple(f) for f in draws(sampler, 13)} == starts
    first = [f[0] % 4 for f in draws(sampler, 13, 2000)]
    assert np.bincount(first).min() > 400  # 500 each


@fast
@given(lengths, st.integers(1, 6), seeds)
def test_strided_frames_are_those_of_the_thinned_video(length, step, seed):
    frames = Strided(sampler=AllFrames(), step=step)(length, np.random.default_rng(seed))
    assert frames == list(range(frames[0], length, step)) and frames[0] < step


def test_strided_pairs_are_neighbours_in_the_thinned_video_and_fill_up_with_its_last_frame():
    sampler = Strided(sampler=ClipPair(num_frames=2), step=3)
    found = {tuple(f) for f in draws(sampler, 8)}  # 0 3 6, 1 4 7 or 2 5
    assert found == {(0, 3, 6, 6), (6, 6, 0, 3), (1, 4, 7, 7), (7, 7, 1, 4), (2, 5, 5, 5)}


def clip_cfg(sampler: str, num_frames: int = 2, reach: int = 3, stride: int = 1) -> CfgNode:
    clip = {"SAMPLER": sampler, "NUM_FRAMES": num_frames, "RANGE": reach, "FRAME_STRIDE": stride}
    clip = CfgNode(clip)
    return CfgNode({"INPUT": CfgNode({"CLIP": clip})})


@pytest.mark.parametrize(
    "name, kind, fields",
    [
        ("Window", Window, {"num_frames": 5, "max_step": 3}),
        ("Neighbours", Neighbours, {"num_frames": 5, "max_distance": 3}),
        ("KeyReference", KeyReference, {"max_distance": 3}),
        ("AdjacentPair", AdjacentPair, {"max_gap": 3}),
        ("AllFrames", AllFrames, {}),
        ("ClipPair", ClipPair, {"num_frames": 5, "max_gap": 3}),
        ("CyclicWindow", CyclicWindow, {"num_frames": 5}),
        ("Past", Past, {"num_frames": 5, "step": 3}),
        ("KeyAndFar", KeyAndFar, {"num_frames": 5, "max_distance": 3}),
    ],
)
def test_config_chooses_the_sampler(name, kind, fields):
    num_frames = 2 if name in ("KeyReference", "AdjacentPair") else 5
    sampler = build_sampler(clip_cfg(name, num_frames))
    assert type(sampler) is kind and vars(sampler) == fields


def test_config_thins_the_video_out():
    sampler = build_sampler(clip_cfg("Window", 5, stride=4))
    assert type(sampler) is Strided and sampler.step == 4
    assert type(sampler.sampler) is Window and vars(sampler.sampler)["num_frames"] == 5


@pytest.mark.parametrize(
    "cfg, message",
    [
        (clip_cfg("Adjacent"), "SAMPLER is 'Adjacent', expected one of Window, .*AdjacentPair"),
        (clip_cfg("AdjacentPair", 3), "NUM_FRAMES is 3, but AdjacentPair gives 2 frames"),
        (clip_cfg("Window", 0), "NUM_FRAMES is 0, expected at least 1"),
        (clip_cfg("Window", 2, 0), "RANGE is 0, expected at least 1"),
        (clip_cfg("Window", stride=0), "FRAME_STRIDE is 0, expected at least 1"),
        (clip_cfg("KeyAndFar", 2), "NUM_FRAMES is 2, but KeyAndFar gives at least 3"),
        (clip_cfg("AdjacentPair", 3, stride=2), "NUM_FRAMES is 3, but AdjacentPair gives 2"),
    ],
)
def test_bad_config_names_the_key(cfg, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(cfg)
