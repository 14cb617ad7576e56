"""The operators of detectron2's compiled extension; the wheel carries this file as ``_C.py``.

Deformable convolution runs on torchvision's operator, on CPU and CUDA. Arguments come in the order
in which ``detectron2/layers/deform_conv.py`` passes them, and results go into tensors that the
caller allocated. ``columns``, ``ones`` and the im2col step are work space of the compiled version
and are ignored. Anything that is not here in Python raises when it is called, not when imported.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torchvision
from torch import Tensor
from torchvision.ops import deform_conv2d

# Read by detectron2/layers/deform_conv.py, whose "not on CPUs" errors do not hold for these.
DEFORM_CONV_ON_CPU = True


def get_compiler_version() -> str:
    """Returns what ``detectron2.utils.collect_env`` prints as the compiler."""
    return f"none (Python operators on torchvision {torchvision.__version__})"


def get_cuda_version() -> str:
    """Returns what ``detectron2.utils.collect_env`` prints as the CUDA compiler."""
    return "not built"


def has_cuda() -> bool:
    """Returns False: there is no CUDA code in this module itself."""
    return False


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *numbers: int,
) -> None:
    """Writes the deformable convolution of ``input`` (B, C, H, W) into ``output`` (B, D, h, w).

    ``numbers``: see :func:`_width_first`; then groups, offset groups, im2col step.
    """
    output.copy_(deform_conv2d(input, offset, weight, **_width_first(numbers)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *numbers: int,
) -> None:
    """Writes the gradients for the input and the offsets; ``numbers`` as in the forward."""
    tensors = (input, offset, weight)
    grads = _gradients(grad_output, tensors, (0, 1), _width_first(numbers))
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[1])


def deform_conv_backward_filter(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *numbers: int,
) -> None:
    """Adds the scaled gradient for the weight to ``grad_weight``.

    ``numbers``: see :func:`_width_first`; then groups, offset groups, scale, im2col step.
    """
    # A convolution is linear in its weight: the gradient needs only the weight's shape.
    tensors = (input, offset, torch.zeros_like(grad_weight))
    (grad,) = _gradients(grad_output, tensors, (2,), _width_first(numbers))
    grad_weight.add_(grad, alpha=numbers[10])


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *numbers: int,
) -> None:
    """Writes the modulated deformable convolution of ``input`` into ``output``.

    ``numbers``: see :func:`_height_first`; then groups, offset groups, whether there is a bias.
    """
    bias_or_none = bias if numbers[-1] else None
    geometry = _height_first(numbers)
    output.copy_(deform_conv2d(input, offset, weight, bias_or_none, mask=mask, **geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *numbers: int,
) -> None:
    """Writes all gradients, the bias's only if there is a bias; ``numbers`` as in the forward."""
    tensors = (input, offset, weight, mask) + ((bias,) if numbers[-1] else ())
    results = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    grads = _gradients(grad_output, tensors, range(len(tensors)), _height_first(numbers))
    for result, grad in zip(results, grads):
        result.copy_(grad)


def _width_first(numbers: Sequence[int]) -> Dict[str, Tuple[int, int]]:
    """Reads kernel, stride, padding, dilation, each (horizontal, vertical), in pixels."""
    return {
        "stride": (numbers[3], numbers[2]),
        "padding": (numbers[5], numbers[4]),
        "dilation": (numbers[7], numbers[6]),
    }


def _height_first(numbers: Sequence[int]) -> Dict[str, Tuple[int, int]]:
    """Reads kernel, stride, padding, dilation, each (vertical, horizontal), in pixels."""
    return {
        "stride": (numbers[2], numbers[3]),
        "padding": (numbers[4], numbers[5]),
        "dilation": (numbers[6], numbers[7]),
    }


def _gradients(
    grad_output: Tensor,
    tensors: Sequence[Tensor],
    wanted: Sequence[int],
    geometry: Dict[str, Tuple[int, int]],
) -> Tuple[Tensor, ...]:
    """Differentiates ``deform_conv2d`` by running it once more under autograd.

    Args:
        grad_output: gradient of the output, (B, D, h, w).
        tensors: input, offset, weight and, where they exist, mask and bias.
        wanted: the positions in ``tensors`` to differentiate for.
        geometry: stride, padding and dilation of the convolution.
    """
    leaves: List[Optional[Tensor]] = [
        tensor.detach().requires_grad_(position in wanted)
        for position, tensor in enumerate(tensors)
    ]
    input, offset, weight, mask, bias = leaves + [None] * (5 - len(leaves))
    with torch.enable_grad():
        output = deform_conv2d(input, offset, weight, bias, mask=mask, **geometry)
    return torch.autograd.grad(output, [leaves[position] for position in wanted], grad_output)


def _missing(name: str, advice: str) -> Callable[..., None]:
    def operator(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"detectron2._C.{name} is compiled code, and this detectron2 was packaged without it. "
            f"{advice}"
        )

    return operator


_COCO = "Use COCOEvaluator(..., use_fast_impl=False): the same numbers, from pycocotools."
_ROTATED = "Rotated boxes need a detectron2 that was built from its sources."

InstanceAnnotation = _missing("InstanceAnnotation", _COCO)
COCOevalEvaluateImages = _missing("COCOevalEvaluateImages", _COCO)
COCOevalAccumulate = _missing("COCOevalAccumulate", _COCO)
box_iou_rotated = _missing("box_iou_rotated", _ROTATED)
roi_align_rotated_forward = _missing("roi_align_rotated_forward", _ROTATED)
roi_align_rotated_backward = _missing("roi_align_rotated_backward", _ROTATED)
