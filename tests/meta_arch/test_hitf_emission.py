"""From logits to disjoint masks at output size."""

import pytest
import torch

from vis_d2.meta_arch.hitf.emission import Emission, finish_slots, label_overlaps


def finish(logits, padded=(9, 13), image=(9, 13), output=(9, 13), threshold=0.5):
    return finish_slots(
        logits, padded_size=padded, image_size=image, output_size=output, threshold=threshold
    )


def test_cells_lie_on_pixels_four_i():
    logits = torch.zeros(2, 3, 4)
    logits[1, 1, 2] = 8.0
    labels, probs = finish(logits, threshold=0.9)
    assert labels.dtype == torch.uint8 and labels.shape == (9, 13)
    # The peak is on pixel (4, 8); half of 8 on the way to its neighbours leaves 0.98.
    shown = (labels == 2).nonzero().tolist()
    assert [4, 8] in shown and [4, 6] in shown and [4, 10] in shown and [2, 8] in shown
    assert [4, 5] not in shown and [4, 11] not in shown
    assert probs[4, 8].item() == pytest.approx(1 / (1 + 2.718281828**-8), abs=1e-5)


def test_padding_is_cut_off_before_the_output_size():
    logits = torch.zeros(2, 3, 4)
    logits[1, :, 2:] = 20.0  # from pixel 8 on, halfway from 4
    logits[0, :, :2] = 20.0
    labels, _ = finish(logits, image=(9, 8), output=(18, 16))
    assert labels.shape == (18, 16)
    # Pixels 0 to 5 of the frame are slot 0's, pixel 6 nobody's, 7 slot 1's; doubled.
    assert (labels[:, :12] == 1).all() and (labels[:, 14:] == 2).all()


def test_logits_are_resized_not_probabilities():
    """Between a pixel of 12 and one of -2 lies 5, where the mean of probabilities is not sure."""
    logits = torch.tensor([[[12.0, -2.0]], [[0.0, 0.0]]])
    labels, probs = finish(logits, (1, 3), (1, 3), (1, 3))
    assert labels.tolist() == [[1, 1, 2]]
    assert probs[0, 1].item() == pytest.approx(0.9933, abs=1e-3)


def test_nobody_owns_a_pixel_without_a_majority():
    labels, _ = finish(torch.zeros(3, 3, 4))
    assert not labels.any()
    assert (finish(torch.zeros(3, 3, 4), threshold=0.3)[0] == 1).all()


def test_overlaps_by_hand():
    before = torch.tensor([[1, 1, 1, 0], [2, 2, 0, 0]], dtype=torch.uint8)
    now = torch.tensor([[3, 3, 0, 0], [3, 2, 2, 0]], dtype=torch.uint8)
    found = label_overlaps(now, before)  # labels are slots + 1
    assert found == pytest.approx({(2, 0): 2 / 4, (2, 1): 1 / 4, (1, 1): 1 / 3})
    assert label_overlaps(now, torch.zeros_like(now)) == {}


def test_who_shows_something():
    probs = torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.1, 0.6], [0.2, 0.3, 0.5], [0.05, 0.05, 0.9]])
    shown = Emission().shown(probs).tolist()
    assert shown == [True, False, False, False]
    assert not Emission(class_threshold=0.6).shown(probs).any()
    lower = Emission(rule="score", class_threshold=0.1).shown(probs).tolist()
    assert lower == [True, True, True, False]
    with pytest.raises(ValueError, match="rule: expected one of .*'best'"):
        Emission(rule="best")
