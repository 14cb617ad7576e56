"""What the tests of several rooms need."""

from typing import Any, Callable, List, Optional, Sequence

import torch

from vis_d2.structures import TrackletTargets


def rectangles(
    boxes: Sequence[Any],
    labels: Optional[List[int]] = None,
    visible: Optional[Sequence[Any]] = None,
    valid: Optional[List[bool]] = None,
    *,
    length: int,
) -> TrackletTargets:
    """Objects (n, T, 4) that fill their boxes in frames of 100 x 100; zeros where not visible."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, length, 4)
    visible = torch.ones(boxes.shape[:2]) if visible is None else torch.tensor(visible)
    visible = visible.bool().view(boxes.shape[:2])
    masks = torch.zeros(*visible.shape, 100, 100, dtype=torch.bool)
    for j, t in visible.nonzero().tolist():
        x0, y0, x1, y1 = (int(v) for v in boxes[j, t])
        masks[j, t, y0:y1, x0:x1] = True
    return TrackletTargets(
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        ids=torch.arange(len(boxes)),
        boxes=boxes * visible[..., None],
        masks=masks,
        visible=visible,
        valid=torch.tensor(valid or [True] * length),
    )


def stored_bytes(model: Callable[[Any], Any], inputs: Any) -> int:
    """What a forward pass keeps for the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model(inputs)
    assert kept
    return sum(sizes.values())
