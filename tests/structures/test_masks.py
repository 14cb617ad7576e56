import torch

from vis_d2.structures import finish_masks


def test_padding_is_cut_off_before_the_last_resize():
    values = torch.zeros(1, 4, 4)
    values[0, :, 3] = 1.0  # the last column of the padded input: x in [6, 8)
    sizes = {"padded_size": (8, 8), "threshold": 0.5}
    with_padding = finish_masks(values, image_size=(8, 8), output_size=(8, 8), **sizes)
    without = finish_masks(values, image_size=(8, 6), output_size=(8, 6), **sizes)
    assert with_padding[0].any() and not without[0].any()


def test_output_has_exactly_the_size_asked_for():
    values = torch.ones(2, 45, 80)
    out = finish_masks(
        values, padded_size=(384, 640), image_size=(360, 639), output_size=(719, 1277), threshold=0
    )
    assert out.shape == (2, 719, 1277)
    assert out.dtype == torch.bool
    assert out.all()


def test_a_rectangle_keeps_its_place():
    values = torch.zeros(1, 32, 32)
    values[0, 8:16, 4:24] = 1.0
    out = finish_masks(
        values, padded_size=(64, 64), image_size=(64, 64), output_size=(128, 128), threshold=0.5
    )
    rows, columns = out[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 16, 95)


def test_threshold_is_exclusive_and_empty_is_a_case():
    sizes = {"padded_size": (2, 2), "image_size": (2, 2), "output_size": (2, 2)}
    assert not finish_masks(torch.full((1, 2, 2), 0.5), threshold=0.5, **sizes).any()
    assert finish_masks(torch.zeros(0, 2, 2), threshold=0.5, **sizes).shape == (0, 2, 2)
