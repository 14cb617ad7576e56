"""Which queries are worth a mask."""

import pytest
import torch

from vis_d2.meta_arch.ms_sts.kept import KeptQueries

#                        class 0, class 1, class 2
PROBS = torch.tensor(
    [
        [0.90, 0.80, 0.01],
        [0.04, 0.03, 0.02],
        [0.70, 0.02, 0.60],
        [0.03, 0.50, 0.02],
    ]
)


def test_the_best_pairs_bring_their_queries_with_all_classes():
    """Pairs: .9 and .8 of query 0, .7 of query 2."""
    queries, probs = KeptQueries(most=3)(PROBS.logit())
    assert queries.tolist() == [0, 2]
    assert torch.allclose(probs, PROBS[[0, 2]])


def test_pairs_of_other_queries_cannot_be_among_the_best():
    queries, probs = KeptQueries(most=5)(PROBS.logit())
    best = probs.flatten().sort(descending=True).values[:5]
    assert torch.allclose(best, PROBS.flatten().sort(descending=True).values[:5])
    assert queries.tolist() == [0, 2, 3]


@pytest.mark.parametrize("most, kept", [(2, [0, 2]), (3, [0, 2, 3]), (9, [0, 2, 3])])
def test_the_queries_of_the_best_class_with_the_classes_above_a_score(most, kept):
    """Query 1 has no class above .05."""
    queries, probs = KeptQueries(kind="queries", most=most, score=0.05)(PROBS.logit())
    assert queries.tolist() == kept
    expected = torch.where(PROBS > 0.05, PROBS, torch.zeros(()))[kept]
    assert torch.allclose(probs, expected)


def test_a_softmax_has_a_class_for_no_object():
    """exp(0), exp(0) and 2: a quarter, a quarter, a half for none."""
    logits = torch.tensor([[0.0, 0.0, 2.0]])
    logits[0, 2] = torch.tensor(2.0).log()
    _, probs = KeptQueries(class_loss="softmax")(logits)
    assert torch.allclose(probs, torch.tensor([[0.25, 0.25]]))


def test_fewer_pairs_than_asked_for_and_half_precision():
    queries, probs = KeptQueries(most=100)(PROBS.logit().half())
    assert queries.tolist() == [0, 1, 2, 3] and probs.dtype == torch.float32


@pytest.mark.parametrize("name, value", [("kind", "tracks"), ("class_loss", "hinge")])
def test_unknown_kinds(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected one of .* found '{value}'"):
        KeptQueries(**{name: value})
