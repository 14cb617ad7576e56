"""Recompute activations in the backward pass instead of storing them."""

from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, Callable, ContextManager, Iterator, Tuple, Type

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "frozen_statistics", "recompute_blocks"]

LISTS = (nn.Sequential, nn.ModuleList)


def checkpointed(function: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """``function`` with its activations recomputed in the backward pass.

    Args:
        function: runs ``module``; its arguments may be tensors or lists of tensors.
        module: its batch normalisations count each batch once, not again in the second pass.

    Returns:
        A function with the same arguments and values. Without gradients it is ``function`` itself.
    """

    def contexts() -> Tuple[ContextManager, ContextManager]:
        return nullcontext(), frozen_statistics(module)

    def run(*args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

    return run


def recompute_blocks(net: nn.Module) -> None:
    """Recompute the activations of each block of ``net``; what is stored is the blocks' inputs.

    Blocks are the outermost modules that stand in a ``Sequential`` or ``ModuleList`` and are made
    of several modules. Their names in the state dict stay.

    Raises:
        ValueError: there are none.
    """
    blocks = list(_blocks(net))
    if not blocks:
        raise ValueError(f"{type(net).__name__} has no lists of blocks to recompute")
    for block in blocks:
        block.__class__ = _recomputed(type(block))  # a wrapper module would change the names


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, LISTS) or not isinstance(module, LISTS):
            yield from _blocks(child)
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


@lru_cache(maxsize=None)
def _recomputed(kind: Type[nn.Module]) -> Type[nn.Module]:
    class Recomputed(kind):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return checkpointed(partial(super().forward, **kwargs), self)(*args)

    Recomputed.__name__ = Recomputed.__qualname__ = kind.__name__
    return Recomputed


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisations in ``module`` take no notice of the batches that they see meanwhile.

    They still normalise with the statistics of the batch where they are in training.
    """
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
