"""Where frames end."""

import torch
from detectron2.structures import ImageList

from vis_d2.structures import frame_sizes, valid_cells


def test_sizes_are_those_of_the_first_frame_of_each_clip():
    images = ImageList(torch.zeros(4, 3, 32, 64), [(20, 50), (20, 50), (32, 40), (32, 40)])
    assert frame_sizes(images, 2).tolist() == [[50, 20, 50, 20], [40, 32, 40, 32]]


def test_valid_cells_lie_on_the_frame():
    cells = valid_cells([(33, 48), (1, 49)], 16, (3, 4))
    assert cells[0].tolist() == [[True, True, True, False]] * 3
    assert cells[1].tolist() == [[True] * 4, [False] * 4, [False] * 4]
    assert valid_cells([(32, 65)], 16, (3, 4))[0].tolist() == [[True] * 4] * 2 + [[False] * 4]
    # While the model is traced, to count its operations, sizes are tensors.
    assert torch.equal(
        valid_cells([torch.tensor([33, 48]), torch.tensor([1, 49])], 16, (3, 4)), cells
    )
