import itertools

import numpy as np
import pytest
from detectron2.utils import comm

from vis_d2.data.mixture import MixtureSampler, check_ratio


def take(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize("weights, share", [((1.0, 1.0), 0.5), ((3.0, 1.0), 0.75), ((1, 9), 0.1)])
def test_sets_come_as_often_as_their_weights_say_whatever_their_sizes(weights, share):
    indices = np.array(take(MixtureSampler([3, 500], weights, 0), 4000))
    assert indices.min() == 0 and indices.max() < 503
    assert abs((indices < 3).mean() - share) < 0.025  # three standard deviations


def test_every_entry_of_a_set_comes_once_before_any_comes_again():
    indices = take(MixtureSampler([4, 7, 2], [1.0, 2.0, 0.5], 1), 600)
    for low, high in ((0, 4), (4, 11), (11, 13)):
        own = [index for index in indices if low <= index < high]
        size = high - low
        epochs = [tuple(own[i : i + size]) for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(epoch) == list(range(low, high)) for epoch in epochs)
        assert len(set(epochs)) > 1  # shuffled anew


def test_sets_are_drawn_at_random_and_not_in_turns():
    # In turns, the processes of a run would each see one kind only.
    indices = take(MixtureSampler([5, 5], [1.0, 1.0], 0), 200)
    kinds = [index < 5 for index in indices]
    assert {(a, b) for a, b in zip(kinds[::2], kinds[1::2])} == set(
        itertools.product([True, False], repeat=2)
    )


def test_the_seed_decides_and_each_iteration_begins_anew():
    sampler = MixtureSampler([5, 50], [1.0, 1.0], 3)
    assert take(sampler, 100) == take(sampler, 100)
    assert take(sampler, 100) != take(MixtureSampler([5, 50], [1.0, 1.0], 4), 100)


def test_processes_share_one_stream(monkeypatch):
    whole = take(MixtureSampler([5, 50], [1.0, 1.0], 3), 60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert take(MixtureSampler([5, 50], [1.0, 1.0], 3), 20) == whole[rank::3]


def test_ratio_is_checked():
    names = ("videos", "images")
    assert check_ratio((1, 2.5), names) == [1.0, 2.5]
    with pytest.raises(ValueError, match=r"has 1 numbers, .* names 2 data sets \(videos, images\)"):
        check_ratio((1.0,), names)
    for bad in (0.0, -1.0, float("inf"), float("nan"), "1", True):
        with pytest.raises(ValueError, match="TRAIN_RATIO: .* for images, expected a positive"):
            check_ratio((1.0, bad), names)
