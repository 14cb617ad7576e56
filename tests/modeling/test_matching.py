"""The assignment of least cost, against all assignments, and the parts costs are made of."""

import itertools
import math
from typing import Dict, Optional, Set, Tuple

import numpy as np
import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vis_d2.modeling import assign, focal_cost, weighted_sum
from vis_d2.structures import TrackletTargets

BAD = [math.nan, math.inf, -math.inf]


def pairs(match: Tuple[Tensor, Tensor]) -> Dict[int, int]:
    """Query -> object."""
    queries, objects = match
    assert queries.dtype == objects.dtype == torch.int64 and queries.shape == objects.shape
    return dict(zip(queries.tolist(), objects.tolist()))


def settled(*given: Tuple[int, int]) -> Tuple[Tensor, Tensor]:
    queries, objects = zip(*given) if given else ((), ())
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(objects, dtype=torch.int64)


def least_total(cost: np.ndarray, queries: Set[int], objects: Set[int]) -> float:
    """The best of all one-to-one assignments, by trying them."""
    few, many = sorted([sorted(queries), sorted(objects)], key=len)
    by_query = len(queries) <= len(objects)
    return min(
        sum(cost[(a, b) if by_query else (b, a)] for a, b in zip(few, chosen))
        for chosen in itertools.permutations(many, len(few))
    )


def test_the_total_counts_not_the_single_pair():
    # Query 0 likes object 0 best (1), but then query 1 has to pay 9: 10 instead of 2 + 3.
    cost = torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    assert pairs(assign(cost)) == {0: 1, 1: 0}


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (4, 0)])
def test_nothing_to_assign(shape):
    assert pairs(assign(torch.zeros(shape))) == {}


def test_with_more_objects_than_queries_each_query_gets_one():
    cost = torch.tensor([[5.0, 1.0, 7.0, 8.0], [6.0, 2.0, 3.0, 9.0]])
    assert pairs(assign(cost)) == {0: 1, 1: 2}


@pytest.mark.parametrize("bad", BAD)
def test_a_pair_whose_cost_is_no_number_is_the_last_choice(bad):
    cost = torch.tensor([[bad, 900.0], [1000.0, 1.0]])
    assert pairs(assign(cost)) == {0: 1, 1: 0}  # 1,900 in place of `bad` + 1
    assert pairs(assign(torch.full((2, 3), bad))) == {0: 0, 1: 1}  # nothing better is left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_costs_with_gradients_and_of_half_precision(dtype):
    cost = torch.tensor([[math.inf, 2.0], [3.0, 9.0]], requires_grad=True)
    assert pairs(assign(cost.to(dtype))) == {0: 1, 1: 0}


def test_kept_pairs_come_first_and_take_no_part():
    # Query 0 would be the best for every object, and object 0 for every query.
    cost = torch.tensor([[-9.0, -9.0, -9.0], [-9.0, 5.0, 6.0], [-9.0, 7.0, 6.0], [-9.0, 9.0, 9.0]])
    queries, objects = assign(cost, kept=settled((3, 2), (0, 0)))
    assert (queries.tolist(), objects.tolist()) == ([3, 0, 1], [2, 0, 1])
    assert pairs(assign(cost, kept=settled())) == pairs(assign(cost))


def test_kept_pairs_need_not_be_candidates():
    cost = torch.zeros(3, 3)
    nobody = torch.zeros(3, dtype=torch.bool)
    assert pairs(assign(cost, kept=settled((2, 1)), candidates=nobody)) == {2: 1}


def test_only_candidates_are_given_away():
    cost = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 2.0]])
    chosen = torch.tensor([False, True, True])
    assert pairs(assign(cost, candidates=chosen)) == {0: 1, 1: 2}
    assert pairs(assign(cost, candidates=~chosen)) in ({0: 0}, {1: 0})


def test_when_all_queries_are_kept_new_objects_stay_without():
    assert pairs(assign(torch.zeros(1, 3), kept=settled((0, 2)))) == {0: 2}


@settings(max_examples=80, deadline=None)
@given(
    num_queries=st.integers(0, 5),
    num_objects=st.integers(0, 5),
    num_kept=st.integers(0, 2),
    choose=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_assignment_is_cheaper(num_queries, num_objects, num_kept, choose, seed):
    rng = np.random.default_rng(seed)
    cost = rng.integers(-20, 20, (num_queries, num_objects)).astype(np.float32)
    count = min(num_kept, num_queries, num_objects)
    kept = list(
        zip(
            rng.permutation(num_queries)[:count].tolist(),
            rng.permutation(num_objects)[:count].tolist(),
        )
    )
    candidates: Optional[Tensor] = None
    if choose:
        candidates = torch.from_numpy(rng.integers(0, 2, num_objects).astype(bool))
    match = assign(torch.from_numpy(cost), settled(*kept), candidates)
    assert list(zip(*(x.tolist() for x in match)))[:count] == kept
    new = [x[count:].tolist() for x in match]
    free = set(range(num_queries)) - {q for q, _ in kept}
    wanted = set(range(num_objects)) - {n for _, n in kept}
    if candidates is not None:
        wanted &= set(candidates.nonzero()[:, 0].tolist())
    assert len(new[0]) == min(len(free), len(wanted))
    assert new[0] == sorted(set(new[0])) and set(new[0]) <= free
    assert len(set(new[1])) == len(new[1]) and set(new[1]) <= wanted
    assert cost[new[0], new[1]].sum() == least_total(cost, free, wanted)


def test_focal_cost_by_hand():
    # p = 1/2: 0.25 * (1/2)^2 * ln 2 and 0.75 * (1/2)^2 * ln 2
    positive, negative = focal_cost(torch.zeros(2, 3), alpha=0.25, gamma=2.0)
    assert positive.shape == negative.shape == (2, 3)
    assert positive[0, 0].item() == pytest.approx(0.0625 * math.log(2))
    assert negative[0, 0].item() == pytest.approx(0.1875 * math.log(2))
    # p = 3/4
    positive, negative = focal_cost(torch.tensor([math.log(3)]), alpha=0.25, gamma=2.0)
    assert positive.item() == pytest.approx(0.25 / 16 * math.log(4 / 3))
    assert negative.item() == pytest.approx(0.75 * 9 / 16 * math.log(4))


def test_focal_cost_is_finite_far_out():
    positive, negative = focal_cost(torch.tensor([-100.0, 100.0]), alpha=0.25, gamma=2.0)
    assert positive.tolist() == [pytest.approx(25.0), 0.0]  # 0.25 * 1 * 100
    assert negative.tolist() == [0.0, pytest.approx(75.0)]
    half = focal_cost(torch.tensor([100.0]).half(), alpha=0.25, gamma=2.0)[1]
    assert half.dtype == torch.float32 and half.item() == pytest.approx(75.0)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_cost_is_the_focal_loss_of_both_answers(alpha, gamma):
    logits = torch.linspace(-12, 12, 49)
    positive, negative = focal_cost(logits, alpha, gamma)
    for found, target in ((positive, 1.0), (negative, 0.0)):
        expected = sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha, gamma)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_weighted_sum_of_costs():
    targets = TrackletTargets(
        labels=torch.tensor([3, 7]),
        ids=torch.tensor([1, 2]),
        boxes=torch.zeros(2, 1, 4),
        masks=torch.zeros(2, 1, 2, 2, dtype=torch.bool),
        visible=torch.ones(2, 1, dtype=torch.bool),
    )

    def by_query(outputs, truth):
        return outputs["x"][:, None].expand(-1, len(truth))

    def by_object(outputs, truth):
        return truth.labels[None].expand(len(outputs["x"]), -1)

    total = weighted_sum((2.0, by_query), (-1.0, by_object))
    cost = total({"x": torch.tensor([1.0, 10.0, 100.0])}, targets)
    assert cost.tolist() == [[-1.0, -5.0], [17.0, 13.0], [197.0, 193.0]]
