"""A judge of foregrounds that the segmenter learns to deceive; in training only."""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vis_d2.layers import ChannelNorm
from vis_d2.modeling import Match, current_iteration, global_mean
from vis_d2.structures import TrackletTargets

__all__ = ["AdversarialLosses", "Discriminator", "Scene", "foregrounds"]

SLOPE = 0.2  # of the leaky rectifiers
NORM_EPS = 1e-6
CELL = 8  # pixels of a foreground's cell; those of predicted masks have a half as many


@dataclass(frozen=True)
class Scene:
    """F frames, and what the network made of them.

    Attributes:
        frames: (F, 3, H, W), normalised; H and W multiples of 32.
        memory: maps (F, C, h, w) at strides 8, 16 and 32.
        judged: (F, H / 32, W / 32) bool, patches that are not all padding.
    """

    frames: Tensor
    memory: Sequence[Tensor]
    judged: Tensor

    def detach(self) -> "Scene":
        """The same without gradients."""
        return Scene(self.frames, [level.detach() for level in self.memory], self.judged)


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class Discriminator(nn.Module):
    """Is a foreground the true one? One answer for each patch of stride 32.

    Args:
        channels: C of the maps, a multiple of 4; the widths of the layers follow it.
    """

    def __init__(self, *, channels: int = 256) -> None:
        super().__init__()
        self.fine = _conv(3 + channels + 1, channels)
        self.middle = _conv(channels, channels)
        self.coarse = _conv(channels, channels // 4)
        self.blocks = nn.ModuleList(_block(channels // 4 * k) for k in (1, 2, 4))
        self.last = nn.Sequential(nn.LeakyReLU(SLOPE), _conv(2 * channels, 1))

    def forward(
        self, frames: Tensor, memory: Sequence[Tensor], masks: Tensor, every: bool = False
    ) -> Tensor:
        """Judge F foregrounds.

        Args:
            frames: (F, 3, H, W), normalised.
            memory: maps (F, C, h, w) at strides 8, 16 and 32.
            masks: (F, 1, H / 8, W / 8) in [0, 1], the part of each cell in the foreground.
            every: answer with the activations before the last layer instead.

        Returns:
            Logits (F, 1, H / 32, W / 32), high for true foregrounds. Activations of ``every``:
            those of four layers side by side, (F, 15 C / 4, H / 32, W / 32).
        """
        fine, middle, coarse = memory
        small = F.interpolate(frames, size=fine.shape[-2:], mode="area")
        x = self.fine(torch.cat([small, fine, masks], dim=1))
        x = self.middle(_halve(x) + middle)
        layers = [self.coarse(_halve(x) + coarse)]
        for block in self.blocks:
            layers.append(block(layers[-1]))
        return torch.cat(layers, dim=1) if every else self.last(layers[-1])


def _block(channels: int) -> nn.Sequential:
    """From ``channels`` to twice as many."""
    norm = ChannelNorm(2 * channels, eps=NORM_EPS)
    return nn.Sequential(nn.LeakyReLU(SLOPE), _conv(channels, 2 * channels), norm)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def foregrounds(
    masks: Tensor, targets: List[TrackletTargets], matches: List[Match]
) -> Tuple[Tensor, Tensor, Tensor]:
    """Predicted and true foregrounds, of clips with a matched object and more than one frame.

    Args:
        masks: (R, T, H / 4, W / 4) logits of the matched queries of all clips.
        targets: of B clips.
        matches: of B clips; R pairs in all.

    Returns:
        Clips (b,) int64, and two tensors (b * T, 1, H / 8, W / 8) in [0, 1]: the largest
        probability, and the union of the masks, both as means over cells.
    """
    clips = [b for b, (queries, _) in enumerate(matches) if len(queries) and masks.shape[1] > 1]
    rows = masks.float().sigmoid().split([len(queries) for queries, _ in matches])
    pred = [rows[b].amax(dim=0) for b in clips]  # (r, T, h, w) -> (T, h, w)
    true = [targets[b].masks.any(dim=0) for b in clips]  # (n, T, H, W) -> (T, H, W)
    found = torch.tensor(clips, dtype=torch.int64, device=masks.device)
    if not clips:
        none = masks.new_zeros(0, 1, *(n // 2 for n in masks.shape[-2:]))
        return found, none, none
    # (b * T, H, W) -> (b * T, 1, H, W)
    pred_map, true_map = (torch.cat(maps)[:, None].float() for maps in (pred, true))
    return found, F.avg_pool2d(pred_map, CELL // 4), F.avg_pool2d(true_map, CELL)


class AdversarialLosses:
    """What the discriminator learns from, and what the segmenter learns from it.

    Both steps fit into one backward pass: the discriminator learns from maps and masks without
    gradients, the segmenter from a discriminator whose parameters have none. Terms are means over
    the patches of all processes that are judged.

    Args:
        weight: of the segmenter's loss.
        ramp: iterations over which the weight rises from 0; 0: none.
        fm_weight: weight of the distance of the activations on predicted and on true foregrounds.
    """

    def __init__(self, *, weight: float, ramp: int = 0, fm_weight: float = 0.0) -> None:
        self.weight = weight
        self.ramp = ramp
        self.fm_weight = fm_weight

    def __call__(
        self, discriminator: Discriminator, scene: Scene, pred: Tensor, true: Tensor
    ) -> Dict[str, Tensor]:
        """Losses of F >= 0 frames with foregrounds (F, 1, H / 8, W / 8).

        Returns:
            ``loss_disc``: half of the cross entropy of true and of predicted foregrounds, for the
            discriminator. ``loss_adv``, with a feature weight also ``loss_fm``: for the segmenter.
        """
        number = global_mean(scene.judged.sum(), floor=1.0)  # every process takes part in it
        names = ["loss_adv", "loss_disc"] + ["loss_fm"] * (self.fm_weight > 0)
        if not len(pred):
            losses = {name: number.new_zeros(()) for name in names}
            hanging = sum(p.sum() for p in discriminator.parameters()) * 0.0
            return {**losses, "loss_disc": hanging}
        fixed = scene.detach()
        real = _entropy(discriminator(fixed.frames, fixed.memory, true), scene.judged, 1.0)
        fake = _entropy(discriminator(fixed.frames, fixed.memory, pred.detach()), fixed.judged, 0.0)
        deceived = _frozen(discriminator, scene, pred)
        rise = self._rise()
        losses = {
            "loss_disc": (real + fake) / 2 / number,
            "loss_adv": _entropy(deceived, scene.judged, 1.0) / number * rise * self.weight,
        }
        if self.fm_weight > 0:
            with torch.no_grad():
                wanted = _frozen(discriminator, fixed, true, every=True)
            gap = (_frozen(discriminator, scene, pred, every=True) - wanted).float().abs().mean(1)
            losses["loss_fm"] = (gap * scene.judged).sum() / number * rise * self.fm_weight
        return losses

    def _rise(self) -> float:
        """Share of the weight that counts now; all of it outside of a training loop."""
        if not self.ramp:
            return 1.0
        return min(current_iteration(self.ramp) / self.ramp, 1.0)


def _entropy(logits: Tensor, judged: Tensor, label: float) -> Tensor:
    """Cross entropy of (F, 1, h, w) with one label, sum over the judged patches (F, h, w)."""
    values = logits[:, 0].float()
    truth = torch.full_like(values, label)
    return F.binary_cross_entropy_with_logits(values, truth, judged.float(), reduction="sum")


def _frozen(module: Discriminator, scene: Scene, masks: Tensor, every: bool = False) -> Tensor:
    """What a discriminator says, no gradient of which reaches its parameters."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    arguments = (scene.frames, scene.memory, masks, every)
    return functional_call(module, parameters, arguments)
