"""Losses on numbers worked out by hand, and the traps of a softmax over slots without stuff."""

import math

import pytest
import torch

from vis_d2.meta_arch.hitf.criterion import LossWeights, SlotCriterion, slot_of_pixels
from vis_d2.meta_arch.hitf.losses import (
    discrimination_loss,
    empty_loss,
    mask_identity_loss,
    pair_losses,
    semantic_loss,
    valid_dice,
)
from vis_d2.meta_arch.hitf.targets import SlotTargets

VALID = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
OBJECT = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)


def logits_of(*probs) -> torch.Tensor:
    return torch.tensor(probs).log()


def test_background_is_valid_so_leaking_over_it_costs():
    exact = valid_dice(OBJECT[None].float(), OBJECT[None], VALID)
    leaking = valid_dice(torch.ones(1, 1, 8), OBJECT[None], VALID)
    assert exact.item() == pytest.approx(1.0)
    # Five pixels of background, but not the padding: (2 * 2 + 1) / (7 + 2 + 1).
    assert leaking.item() == pytest.approx(0.5)


def test_pair_losses_by_hand():
    # Two slots; slot 1 has the object, with probability 0.75 inside and 0.25 on the background.
    inside = torch.where(OBJECT, 0.75, 0.25)
    masks = torch.stack([1 - inside, inside]).log()
    labels, slots = torch.tensor([0]), torch.tensor([1])
    classes = logits_of([0.1, 0.1, 0.8], [0.5, 0.2, 0.3])
    args = (classes, masks, labels, OBJECT[None], VALID, slots)
    dice = (2 * 1.5 + 1) / (1.5 + 1.25 + 2 + 1)
    mask, label = pair_losses(*args, "const")
    assert mask.item() == pytest.approx(1 - dice)
    assert label.item() == pytest.approx(math.log(2))
    mask, label = pair_losses(*args, "pq")
    assert mask.item() == pytest.approx(0.5 * (1 - dice))
    assert label.item() == pytest.approx(dice * math.log(2))
    assert empty_loss(classes, slots).item() == pytest.approx(-math.log(0.8))


def test_weights_of_a_pair_carry_no_gradient():
    masks = torch.randn(2, 1, 8, requires_grad=True)
    classes = torch.randn(2, 3, requires_grad=True)
    args = (classes, masks, torch.tensor([0]), OBJECT[None], VALID, torch.tensor([1]))
    mask, label = pair_losses(*args, "pq")
    assert torch.autograd.grad(mask, classes, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(label, masks, allow_unused=True) == (None,)


def test_slots_that_no_pixel_wants_change_nothing():
    masks = torch.randn(3, 1, 8)
    more = torch.cat([masks, torch.full((5, 1, 8), -1e4)])
    classes, labels, slots = torch.randn(3, 3), torch.tensor([1]), torch.tensor([2])
    few = pair_losses(classes, masks, labels, OBJECT[None], VALID, slots, "pq")
    many = pair_losses(classes, more, labels, OBJECT[None], VALID, slots, "pq")
    torch.testing.assert_close(few, many)
    torch.testing.assert_close(more.softmax(0).sum(0), torch.ones(1, 8))


def test_a_single_object_is_told_apart_from_the_background():
    features = torch.zeros(2, 1, 8)
    features[0] = 1.0  # all pixels alike: as near to the object as to the background
    owner = torch.where(OBJECT, 0, -1)
    loss, count = discrimination_loss(features, owner, VALID, 0.3)
    assert count == 2 and loss.item() == pytest.approx(2 * math.log(2))
    features[:, OBJECT] = torch.tensor([[0.0], [1.0]])
    loss, _ = discrimination_loss(features, owner, VALID, 0.3)
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1 / 0.3)), rel=1e-4)


def test_discrimination_ignores_padding_and_frames_without_objects():
    features = torch.nn.functional.normalize(torch.randn(3, 1, 8), dim=0).requires_grad_()
    owner = torch.where(OBJECT, 0, -1)
    loss, _ = discrimination_loss(features, owner, VALID, 0.3)
    (grad,) = torch.autograd.grad(loss, features)
    assert not grad[..., -1].any() and grad[..., :-1].any()
    loss, count = discrimination_loss(features, torch.full((1, 8), -1), VALID, 0.3)
    assert count == 0 and loss.item() == 0 and loss.requires_grad
    # Nothing but padding left of the background, and one object: nobody to be told apart from.
    loss, _ = discrimination_loss(features, torch.where(VALID, 0, -1), VALID, 0.3)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_mask_identity_asks_object_pixels_only():
    target = torch.where(OBJECT, 1, -1)
    loss, count = mask_identity_loss(torch.zeros(4, 1, 8), target)
    assert count == 2 and loss.item() == pytest.approx(2 * math.log(4))
    loss, count = mask_identity_loss(torch.zeros(4, 1, 8), torch.full((1, 8), -1))
    assert count == 0 and loss.item() == 0


def test_semantics_by_hand():
    owner, labels = torch.where(OBJECT, 0, -1), torch.tensor([1])
    logits = torch.tensor([0.2, 0.5, 0.3]).log()[:, None, None].expand(3, 1, 8)
    loss, count = semantic_loss(logits, owner, labels, VALID)
    assert count == 7  # padding left out, background is class 2
    assert loss.item() == pytest.approx(-2 * math.log(0.5) - 5 * math.log(0.3))


def one_clip(present_now=True) -> SlotTargets:
    before, now = OBJECT, OBJECT if present_now else torch.zeros_like(OBJECT)
    masks = torch.stack([before, now])[None]  # (1, 2, 1, 8)
    return SlotTargets(torch.tensor([0]), masks, masks.flatten(2).any(2), VALID)


def outputs(background=False) -> dict:
    inside = torch.where(OBJECT, 0.9, 0.1)
    masks = torch.stack([1 - inside, inside, torch.full_like(inside, 1e-6)])[
        : 3 if background else 2
    ]
    return {
        "pred_logits": logits_of([0.1, 0.1, 0.8], [0.6, 0.2, 0.2])[None],
        "pred_masks": masks.log()[None],
        "pixel_features": torch.nn.functional.normalize(torch.ones(1, 2, 1, 8), dim=1),
        "semantic": torch.zeros(1, 3, 1, 8),
    }


def charge(truth, background=False, **options):
    criterion = SlotCriterion(background=background, **options)
    return criterion(outputs(background), outputs(background), [truth])


def test_criterion_by_hand():
    losses = charge(one_clip(), weighting="const")
    dice = (2 * 1.8 + 1) / (1.8 + 0.5 + 2 + 1)
    expected = {  # 3 * 0.75 for the object, 3 * 0.25 for the empty slot; means over two slots
        "loss_mask": 2.25 * (1 - dice) / 2,
        "loss_cls": 2.25 * -math.log(0.6) / 2,
        "loss_empty": 0.75 * -math.log(0.8) / 2,
        "loss_disc": math.log(2),
        "loss_mask_id": 0.3 * -math.log(0.9),
        "loss_sem": math.log(3),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)


def test_an_object_that_is_gone_teaches_its_slot_the_empty_class():
    losses = charge(one_clip(present_now=False))
    assert losses["loss_mask"] == losses["loss_cls"] == losses["loss_mask_id"] == 0
    expected = 0.75 * -(math.log(0.8) + math.log(0.2)) / 2
    assert losses["loss_empty"].item() == pytest.approx(expected)
    # The frame before still shows it.
    before = charge(one_clip(present_now=False), supervise_previous=True)
    assert before["loss_mask"] > 0 and before["loss_empty"] > losses["loss_empty"]


def test_weights_scale_what_they_name():
    plain = charge(one_clip())
    weights = LossWeights(pq=6.0, inst=0.5, aux=2.0, disc=3.0, mask_id=0.6, sem=0.0)
    other = charge(one_clip(), weights=weights)
    ratio = {n: (other[n] / plain[n]).item() for n in plain if n != "loss_sem"}
    assert ratio == pytest.approx(
        {"loss_mask": 4 / 3, "loss_cls": 4 / 3, "loss_empty": 4.0, "loss_disc": 6.0,
         "loss_mask_id": 4.0}, rel=1e-4
    )  # fmt: skip
    assert other["loss_sem"] == 0


def test_the_background_channel_is_never_matched_and_owns_the_background():
    truth, match = one_clip(), (torch.tensor([1]), torch.tensor([0]))
    assert slot_of_pixels(truth, match, 1, -1).tolist() == [[1, 1] + [-1] * 6]
    assert slot_of_pixels(truth, match, 1, 2).tolist() == [[1, 1] + [2] * 5 + [-1]]
    both = outputs(background=True)
    both["pred_masks"] = torch.stack([-50.0 * OBJECT, -50.0 * OBJECT, 50.0 * OBJECT])[None]
    ((slots, _),) = SlotCriterion(background=True).match(both, both, [truth])
    assert slots.tolist() != [2]
    # It answers for the background: seven pixels instead of two.
    assert charge(truth, background=True)["loss_mask_id"] > charge(truth)["loss_mask_id"]


def test_pixels_of_an_object_without_a_slot_are_nobodys():
    none = torch.zeros(0, dtype=torch.int64)
    assert (slot_of_pixels(one_clip(), (none, none), 1, -1) == -1).all()
    assert slot_of_pixels(one_clip(), (none, none), 1, 2).tolist() == [[-1, -1] + [2] * 5 + [-1]]


def test_matching_by_one_frame_needs_no_other():
    criterion = SlotCriterion(pair=False)
    assert not criterion.needs_previous
    torch.testing.assert_close(criterion(outputs(), None, [one_clip()]), charge(one_clip()))
    assert SlotCriterion(pair=False, supervise_previous=True).needs_previous


def test_losses_are_means_over_clips_and_pixels():
    """Slot losses: over clips. Pixel losses: over pixels, so that a clip counts by its objects."""
    empty = SlotTargets(one_clip().labels[:0], *(x[:0] for x in (one_clip().masks, one_clip().present)), VALID)  # fmt: skip  # noqa: E501
    two = {name: torch.cat([value] * 2) for name, value in outputs().items()}
    both = SlotCriterion()(two, two, [one_clip(), empty])
    one, other = charge(one_clip()), charge(empty)
    for name in ("loss_mask", "loss_cls", "loss_empty"):
        assert both[name].item() == pytest.approx((one[name] + other[name]).item() / 2)
    assert both["loss_disc"].item() == pytest.approx(one["loss_disc"].item())
    assert other["loss_disc"] == 0
