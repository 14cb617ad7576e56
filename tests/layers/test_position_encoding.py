import math

import pytest
import torch
from torch import Tensor

from vis_d2.layers import sine_encoding


def whole(*axes: int, batch: int = 1) -> Tensor:
    return torch.ones(batch, *axes, dtype=torch.bool)


def test_first_channels_over_four_frames():
    """Quarter turns: sin is 1, 0, -1, 0 and cos is 0, -1, 0, 1."""
    encoding = sine_encoding(whole(4, 2, 3), [128, 128, 128])
    assert encoding.shape == (1, 384, 4, 2, 3) and encoding.dtype == torch.float32
    for channel, values in enumerate([[1.0, 0, -1, 0], [0.0, -1, 0, 1]]):
        expected = torch.tensor(values)[:, None, None].expand(4, 2, 3)
        torch.testing.assert_close(encoding[0, channel], expected, atol=1e-5, rtol=0)


def test_axes_come_in_order_and_each_varies_along_itself_only():
    encoding = sine_encoding(whole(2, 3, 5), [2, 4, 6])[0]
    assert encoding.shape == (12, 2, 3, 5)
    for axis, part in enumerate(encoding.split([2, 4, 6])):
        line = part.movedim(axis + 1, -1)  # (channels, other axes, axis)
        assert torch.equal(line, line[:, :1, :1].expand_as(line))
        turn = torch.arange(1, line.shape[-1] + 1) / line.shape[-1] * 2 * math.pi
        torch.testing.assert_close(line[0, 0, 0], turn.sin(), atol=1e-5, rtol=0)
        torch.testing.assert_close(line[1, 0, 0], turn.cos(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature, slower", [(10000.0, 100.0), (16.0, 4.0)])
def test_second_pair_of_four_channels_turns_slower_by_the_root_of_the_temperature(
    temperature, slower
):
    """Frequencies of n = 4 channels: 1 / temperature ** (0 / 4), 1 / temperature ** (2 / 4)."""
    encoding = sine_encoding(whole(5), [4], temperature=temperature, scale=3.0)[0]
    position = torch.arange(1, 6) / 5 * 3.0
    expected = [
        position.sin(), position.cos(), (position / slower).sin(), (position / slower).cos()
    ]  # fmt: skip
    torch.testing.assert_close(encoding, torch.stack(expected), atol=1e-5, rtol=0)


def test_offset_moves_every_position_to_the_middle_of_its_cell():
    """Four cells in one turn, at 1/8, 3/8, 5/8, 7/8."""
    encoding = sine_encoding(whole(4), [2], offset=-0.5)[0]
    root = math.sqrt(0.5)
    expected = torch.tensor([[root, root, -root, -root], [root, -root, -root, root]])
    torch.testing.assert_close(encoding, expected, atol=1e-5, rtol=0)


def test_two_axes_of_a_deformable_transformer():
    """Rows first, then columns, 128 channels each."""
    encoding = sine_encoding(whole(2, 4, batch=3), [128, 128], offset=-0.5)
    assert encoding.shape == (3, 256, 2, 4)
    rows, columns = encoding[:, 0], encoding[:, 128]
    expected = torch.tensor([1.0, -1.0])[:, None].expand(3, 2, 4)  # at 1/4 and 3/4 of a turn
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    root = math.sqrt(0.5)
    expected = torch.tensor([root, root, -root, -root]).expand(3, 2, 4)
    torch.testing.assert_close(columns, expected, atol=1e-5, rtol=0)


def test_padding_does_not_count():
    """The valid part of a padded map has the encoding it has alone; samples have their own."""
    valid = whole(3, 6, 7, batch=2)
    valid[1, 2:] = False
    valid[1, :, 4:] = False
    valid[1, :, :, 5:] = False
    channels = [4, 4, 4]
    encoding = sine_encoding(valid, channels)
    assert torch.equal(encoding[1:, :, :2, :4, :5], sine_encoding(whole(2, 4, 5), channels))
    assert torch.equal(encoding[:1], sine_encoding(whole(3, 6, 7), channels))
    assert encoding.isfinite().all()


def test_scale_and_eps_enter_the_position():
    position = torch.arange(1.0, 4.0) / (3 + 1) * 2
    encoding = sine_encoding(whole(3), [2], scale=2.0, eps=1.0)[0]
    torch.testing.assert_close(encoding, torch.stack([position.sin(), position.cos()]))


def test_an_axis_without_channels_is_left_out():
    encoding = sine_encoding(whole(2, 3), [0, 4])
    assert torch.equal(encoding[:, :, 0], sine_encoding(whole(3), [4]))


@pytest.mark.parametrize(
    "valid, channels, message",
    [
        (whole(2, 3), [2, 3], r"channels are \[2, 3\], expected even numbers"),
        (whole(2, 3), [2, -2], r"expected even numbers"),
        (whole(2, 3), [2], r"channels \[2\] for valid of shape \(1, 2, 3\): expected one number"),
        (whole(3), [2, 2], r"each of its 1 axes"),
        (whole(3).float(), [2], r"valid is torch.float32, expected torch.bool"),
    ],
)
def test_bad_arguments(valid, channels, message):
    with pytest.raises(ValueError, match=message):
        sine_encoding(valid, channels)
