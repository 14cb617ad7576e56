"""Every cell is normalised by itself, over its channels."""

import torch

from vis_d2.layers import ChannelNorm


def test_a_cell_by_hand():
    """Channels 1 and 3: mean 2, variance 1; channels 5 and 5: no variance."""
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]]).view(1, 2, 1, 2)
    norm = ChannelNorm(2, eps=0.0)
    torch.nn.init.constant_(norm.bias, 0.5)
    assert norm(x)[0, :, 0, 0].tolist() == [-0.5, 1.5]
    norm = ChannelNorm(2)
    assert norm(x)[0, :, 0, 1].tolist() == [0.0, 0.0]
    assert norm(x).shape == x.shape


def test_cells_and_images_do_not_look_at_each_other():
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    norm = ChannelNorm(4)
    assert torch.allclose(norm(x)[1:, :, 1:, 2:], norm(x[1:, :, 1:, 2:]))
    assert list(norm.state_dict()) == ["weight", "bias"]
