"""Which pairs are charged on which layer, with what names, weights and normaliser.

The model under test answers x (B, Q): query i wants the object whose label is nearest to x[i].
"""

from typing import Dict, List

import pytest
import torch
from detectron2.utils import comm
from torch import Tensor

from vis_d2.modeling import SetCriterion
from vis_d2.structures import TrackletTargets


def truth(labels: List[int], visible=None, valid=None) -> TrackletTargets:
    """Objects in a clip of two frames."""
    n = len(labels)
    if visible is None:
        visible = [[True, True]] * n
    return TrackletTargets(
        labels=torch.tensor(labels, dtype=torch.int64),
        ids=torch.arange(n),
        boxes=torch.zeros(n, 2, 4),
        masks=torch.zeros(n, 2, 4, 4, dtype=torch.bool),
        visible=torch.tensor(visible, dtype=torch.bool).view(n, 2),
        valid=None if valid is None else torch.tensor(valid),
    )


def layer(*rows: List[float]) -> Dict[str, Tensor]:
    return {"x": torch.tensor(rows, requires_grad=True)}


def distance(outputs, targets) -> Tensor:
    return (outputs["x"][:, None] - targets.labels[None]).abs()


def far(outputs, targets, matches, number) -> Dict[str, Tensor]:
    """Sum of the distances of all pairs, divided by the normaliser."""
    total = outputs["x"].sum() * 0.0
    for b, (target, (queries, objects)) in enumerate(zip(targets, matches)):
        total = total + (outputs["x"][b, queries] - target.labels[objects]).abs().sum()
    return {"loss_far": total / number}


def two(outputs, targets, matches, number) -> Dict[str, Tensor]:
    return {"loss_pairs": torch.tensor(float(len(matches[0][0]))), "loss_number": number}


def criterion(**kwargs) -> SetCriterion:
    weights = {"loss_far": 1.0, "loss_pairs": 1.0, "loss_number": 1.0}
    return SetCriterion(**{"cost": distance, "losses": [far], "weights": weights, **kwargs})


def as_pairs(matches) -> List[Dict[int, int]]:
    return [dict(zip(queries.tolist(), objects.tolist())) for queries, objects in matches]


def settled(queries: List[int], objects: List[int]):
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def test_names_weights_and_the_auxiliary_losses_of_earlier_layers():
    layers = [layer([1.0]), layer([2.0]), layer([3.0])]
    weights = {"loss_far": 10.0, "loss_pairs": 3.0, "loss_number": 5.0}
    losses, _ = criterion(losses=[far, two], auxiliary=[far], weights=weights)(layers, [truth([0])])
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_far_0": 10.0,  # distance 1, weight 10, one object
        "loss_far_1": 20.0,
        "loss_far": 30.0,
        "loss_pairs": 3.0,
        "loss_number": 5.0,
    }


def test_without_auxiliary_losses_only_the_last_layer_is_charged():
    first, last = layer([1.0]), layer([2.0])
    losses, _ = criterion()([first, last], [truth([0])])
    assert list(losses) == ["loss_far"]
    losses["loss_far"].backward()
    assert first["x"].grad is None and last["x"].grad.tolist() == [[1.0]]


def test_each_layer_is_matched_by_itself_and_the_last_matches_are_returned():
    layers = [layer([0.0, 9.0]), layer([9.0, 0.0])]
    losses, matches = criterion(auxiliary=[far])(layers, [truth([0, 9])])
    # Either order costs nothing where it is matched, and 18 / 2 objects with the other's matches.
    assert losses["loss_far_0"] == 0 and losses["loss_far"] == 0
    assert as_pairs(matches) == [{0: 1, 1: 0}]


def test_clips_of_a_batch_do_not_mix():
    layers = [layer([0.0, 9.0], [4.0, 2.0])]
    losses, matches = criterion()(layers, [truth([9]), truth([3, 2])])
    assert as_pairs(matches) == [{1: 0}, {0: 0, 1: 1}]
    assert losses["loss_far"].item() == pytest.approx(1 / 3)  # |4 - 3| over three objects


def test_kept_pairs_hold_on_all_layers_though_others_are_cheaper():
    layers = [layer([0.0, 9.0, 5.0]), layer([0.0, 9.0, 5.0])]
    kept = [settled([0, 1], [1, 0])]  # crossed: both pay 9
    losses, matches = criterion(auxiliary=[far])(layers, [truth([0, 9])], kept)
    assert as_pairs(matches) == [{0: 1, 1: 0}]
    assert losses["loss_far_0"].item() == losses["loss_far"].item() == 9.0  # 18 over two objects
    assert criterion()(layers, [truth([0, 9])])[0]["loss_far"] == 0


def test_new_objects_take_queries_that_kept_pairs_leave_free():
    layers = [layer([5.0, 0.0, 6.0])]
    kept = [settled([0], [0])]
    _, matches = criterion()(layers, [truth([0, 5])], kept)
    # Object 1 would like query 0, which is taken; query 2 is the next best.
    assert as_pairs(matches) == [{0: 0, 2: 1}]


def test_each_layer_matches_births_by_itself():
    layers = [layer([0.0, 5.0, 9.0]), layer([0.0, 9.0, 5.0])]
    losses, matches = criterion(losses=[far, two], auxiliary=[far])(
        layers, [truth([0, 5])], [settled([0], [0])]
    )
    assert losses["loss_far_0"] == 0 and losses["loss_far"] == 0
    assert as_pairs(matches) == [{0: 0, 2: 1}]


def test_without_births_new_objects_teach_nobody():
    layers = [layer([0.0, 5.0])]
    _, matches = criterion()(layers, [truth([0, 5])], [settled([0], [0])], births=False)
    assert as_pairs(matches) == [{0: 0}]
    _, first = criterion()(layers, [truth([0, 5])], births=False)  # nothing is kept: all are new
    assert as_pairs(first) == [{0: 0, 1: 1}]


def test_an_object_that_no_real_frame_shows_is_not_matched_anew():
    seen = [[False, False], [False, True], [True, False]]
    layers = [layer([1.0, 2.0, 3.0])]
    _, matches = criterion()(layers, [truth([1, 2, 3], seen, [True, False])])
    assert as_pairs(matches) == [{2: 2}]  # object 1 is only in the frame that fills the clip up
    _, matches = criterion()(layers, [truth([1, 2, 3], seen, [True, True])])
    assert as_pairs(matches) == [{1: 1, 2: 2}]


def test_a_kept_object_that_vanished_stays_matched():
    clip = truth([4, 7], [[False, False], [True, True]])
    _, matches = criterion()([layer([1.0, 7.0])], [clip], [settled([0], [0])])
    assert as_pairs(matches) == [{0: 0, 1: 1}]


@pytest.mark.parametrize("count, expected", [("objects", 3.0), ("frames", 2 * 2 + 1 * 1)])
def test_the_normaliser_counts_objects_or_their_real_frames(count, expected):
    targets = [truth([1, 2]), truth([3], valid=[True, False])]
    losses, _ = criterion(losses=[two], count=count)([layer([1.0, 2.0], [3.0, 4.0])], targets)
    assert losses["loss_number"].item() == expected


@pytest.mark.parametrize(
    "kept, births, expected",
    [
        (None, True, 2.0),  # objects 1 and 2 are shown by a real frame
        (None, False, 2.0),  # all are new in a first clip
        ([settled([0], [0])], True, 3.0),  # object 0 vanished, but is charged
        ([settled([0], [0])], False, 1.0),  # 1 and 2 are not
        ([settled([0, 1], [0, 1])], True, 3.0),  # nobody counts twice
        ([settled([], [])], False, 1.0),  # at least 1
    ],
)
def test_objects_that_teach_nobody_do_not_count(kept, births, expected):
    seen = [[False, False], [True, False], [True, True], [False, True]]
    clip = truth([4, 7, 8, 9], seen, [True, False])
    for count in ("objects", "frames"):  # one frame is real
        run = criterion(losses=[two], count=count)
        losses, matches = run([layer([4.0, 7.0, 8.0, 9.0])], [clip], kept, births)
        assert losses["loss_number"].item() == expected
        assert max(len(matches[0][0]), 1) == expected


def test_the_normaliser_is_the_mean_over_workers(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(7))
    losses, _ = criterion(losses=[two])([layer([0.0, 1.0, 2.0])], [truth([0, 1, 2])])
    assert losses["loss_number"].item() == 5.0  # (3 here + 7 there) / 2


def test_unknown_count_is_named():
    with pytest.raises(ValueError, match=r"count: expected one of \('objects', 'frames'\).*'pix'"):
        criterion(count="pix")


@pytest.mark.parametrize("count", ["objects", "frames"])
def test_no_objects_gives_zeros_that_hang_on_the_outputs(count):
    layers = [layer([1.0, 2.0]), layer([1.0, 2.0])]
    losses, matches = criterion(auxiliary=[far], count=count)(layers, [truth([])])
    assert as_pairs(matches) == [{}]
    assert set(losses) == {"loss_far", "loss_far_0"}
    sum(losses.values()).backward()
    for outputs in layers:
        assert outputs["x"].grad.tolist() == [[0.0, 0.0]]


def test_the_cost_is_not_part_of_the_graph():
    def watched(outputs, targets) -> Tensor:
        assert not torch.is_grad_enabled()
        return distance(outputs, targets)

    losses, _ = criterion(cost=watched)([layer([3.0])], [truth([1])])
    assert losses["loss_far"].requires_grad


def test_a_layer_without_losses_is_not_matched():
    matched = []

    def cost(outputs, targets):
        matched.append(outputs["x"].tolist())
        return distance(outputs, targets)

    layers, targets = [layer([1.0]), layer([2.0])], [truth([0])]
    criterion(cost=cost)(layers, targets)
    assert matched == [[2.0]]
    matched.clear()
    criterion(cost=cost, auxiliary=[far])(layers, targets)
    assert matched == [[1.0], [2.0]]
    matched.clear()
    # The pairs of the last layer are part of the answer.
    assert as_pairs(criterion(cost=cost, losses=[])(layers, targets)[1]) == [{0: 0}]
    assert matched == [[2.0]]


@pytest.mark.parametrize("kept", [None, [settled([0], [1])]])
def test_outputs_are_completed_once_their_pairs_are_known(kept):
    calls = []

    def complete(i, outputs, matches):
        calls.append((i, sorted(outputs), as_pairs(matches)))
        return {**outputs, "late": torch.tensor(float(10 + i))}

    def late(outputs, targets, matches, number):
        return {"loss_far": outputs["late"]}

    layers = [layer([0.0, 9.0]), layer([9.0, 0.0])]
    module = criterion(losses=[late], auxiliary=[late])
    losses, _ = module(layers, [truth([0, 9])], kept, complete=complete)
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_far_0": 10.0,
        "loss_far": 11.0,
    }
    pairs = [[{0: 0, 1: 1}], [{0: 1, 1: 0}]] if kept is None else [[{0: 1, 1: 0}]] * 2
    assert calls == [(i, ["x"], pairs[i]) for i in range(2)]


def test_a_layer_without_losses_is_not_completed():
    seen = []
    module = criterion()
    module([layer([1.0]), layer([2.0])], [truth([0])], complete=lambda i, o, m: seen.append(i) or o)
    assert seen == [1]
