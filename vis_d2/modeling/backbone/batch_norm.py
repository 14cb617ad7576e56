"""Another normalisation in the place of a network's batch normalisations."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["replace_batch_norm"]

NORMS = ("", "BN", "FrozenBN", "SyncBN", "GN")
GROUPS = 32


def replace_batch_norm(net: nn.Module, norm: str) -> nn.Module:
    """Replace the batch normalisations of a timm model, in place; other kinds stay as they are.

    Args:
        net: holds ``BatchNorm2d``, or timm's variants of it that hold an activation as well.
        norm: "" or "BN" (nothing changes), "FrozenBN" or "SyncBN" (weights, statistics and names
            stay), or "GN" (``BatchNorm2d`` only; 32 groups, with weights of its own).

    Returns:
        ``net``.

    Raises:
        ValueError: no such ``norm``, no batch normalisation to replace, or one that cannot be.
    """
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    if norm not in NORMS:
        raise ValueError(f"MODEL.TIMM.NORM: expected one of {NORMS}, found {norm!r}")
    if norm and not any(isinstance(m, _BatchNorm) for m in net.modules()):
        message = f"expected '' for a model without batch normalisation, found {norm!r}"
        raise ValueError(f"MODEL.TIMM.NORM: {message}")
    if norm == "FrozenBN":
        return freeze_batch_norm_2d(net)
    if norm == "SyncBN":
        return convert_sync_batchnorm(net)
    if norm == "GN":
        _use_group_norm(net)
    return net


def _use_group_norm(net: nn.Module) -> None:
    for name, child in list(net.named_children()):
        if not isinstance(child, _BatchNorm):
            _use_group_norm(child)
        elif type(child) is not nn.BatchNorm2d or child.num_features % GROUPS:
            found = f"{name} is a {type(child).__name__} of {child.num_features} channels"
            message = f"GN replaces BatchNorm2d of a multiple of {GROUPS} channels"
            raise ValueError(f"MODEL.TIMM.NORM: {message}, but {found}")
        else:
            setattr(net, name, nn.GroupNorm(GROUPS, child.num_features))
