"""Recompute activations in the backward pass instead of storing them."""

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Iterator, Tuple

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed"]


def checkpointed(function: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """``function`` with its activations recomputed in the backward pass.

    Args:
        function: runs ``module``; its arguments may be tensors or lists of tensors.
        module: its batch normalisations count each batch once, not again in the second pass.

    Returns:
        A function with the same arguments and values. Without gradients it is ``function`` itself.
    """

    def contexts() -> Tuple[ContextManager, ContextManager]:
        return nullcontext(), _frozen_statistics(module)

    def run(*args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

    return run


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [
        None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms
    ]
    for norm in norms:
        norm.momentum = 0.0  # running = 1 * running + 0 * batch
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)
