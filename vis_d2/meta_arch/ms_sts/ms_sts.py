"""MS-STS VIS: one query per object of a clip, attention over scales and frames, dynamic masks."""

from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor

from vis_d2.modeling import (
    ClipLinker,
    ClipTracks,
    LinkedState,
    Match,
    Outputs,
    SetCriterion,
    clip_features,
)
from vis_d2.structures import TrackletTargets, frame_sizes, valid_cells

from .. import base
from .build import (
    STRIDES,
    build_adversarial,
    build_criterion,
    build_detector,
    build_discriminator,
    build_kept,
    build_linker,
    build_mask_branch,
    check_choices,
)
from .detector import ClipDetector, ClipStates
from .discriminator import AdversarialLosses, Discriminator, Scene, foregrounds
from .kept import KeptQueries
from .losses import MaskLosses
from .mask_branch import MaskBranch

__all__ = ["MSSTS"]

Size = Tuple[int, int]


@META_ARCH_REGISTRY.register()
class MSSTS(base.VideoMetaArch):
    """A whole clip at once: a query is an object of the clip, with a box and a mask per frame.

    Args:
        backbone: with maps at strides 8, 16 and 32.
        in_features: their names.
        detector: encoder, decoder, and the heads of classes and boxes.
        masks: dynamic masks of chosen queries.
        criterion: matching and losses.
        kept: the queries that get masks in testing.
        linker: who is who from window to window.
        discriminator: judges foregrounds in training; None: no adversarial losses.
        adversarial: what it and the segmenter learn from each other.
        recompute_backbone: store no activations of the backbone.
        kwargs: see ``VideoMetaArch``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: List[str],
        detector: ClipDetector,
        masks: MaskBranch,
        criterion: SetCriterion,
        kept: KeptQueries,
        linker: ClipLinker,
        discriminator: Optional[Discriminator] = None,
        adversarial: Optional[AdversarialLosses] = None,
        recompute_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.in_features = list(in_features)
        self.detector = detector
        self.masks = masks
        self.criterion = criterion
        self.kept = kept
        self.linker = linker
        self.discriminator = discriminator
        self.adversarial = adversarial
        self.recompute_backbone = recompute_backbone

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments of the constructor from a config."""
        node = cfg.MODEL.MS_STS
        check_choices(cfg)
        backbone = build_backbone(cfg)
        arguments = base.common_arguments(cfg, backbone)
        divisibility = max(arguments["size_divisibility"], STRIDES[-1])
        return {
            "backbone": backbone,
            "in_features": node.IN_FEATURES,
            "detector": build_detector(cfg, backbone),
            "masks": build_mask_branch(node),
            "criterion": build_criterion(node),
            "kept": build_kept(node),
            "linker": build_linker(cfg),
            "discriminator": build_discriminator(node),
            "adversarial": build_adversarial(node),
            "recompute_backbone": node.RECOMPUTE in ("backbone", "all"),
            **{**arguments, "size_divisibility": divisibility},
        }

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """``loss_ce``, ``_bbox``, ``_giou``, ``_mask`` and ``_dice`` of all layers.

        With a discriminator ``loss_adv`` and ``loss_disc`` of the last layer's masks. The latter
        sends gradients to the discriminator only, all others to everything but that.
        """
        padded = tuple(images.tensor.shape[-2:])
        targets = [TrackletTargets.from_frames(clip["instances"], padded) for clip in clips]
        states = self._states(images, len(clips))
        features = self.masks.features(states.memory, states.valid)
        sizes = frame_sizes(images, len(clips))
        layers = [{**layer, "size": sizes} for layer in states.layers]
        drawn: Dict[int, Tensor] = {}

        def complete(i: int, outputs: Outputs, matches: List[Match]) -> Outputs:
            charged = self.criterion.losses if i == len(layers) - 1 else self.criterion.auxiliary
            if any(isinstance(loss, MaskLosses) for loss in charged):
                drawn[i] = self._matched_masks(features, outputs, matches)
                outputs = {**outputs, "matched_masks": drawn[i]}
            return outputs

        losses, matches = self.criterion(layers, targets, complete=complete)
        if not self.criterion.auxiliary:  # every head hangs on the losses, also of these layers
            heads = [
                layer[name].sum() for layer in layers for name in ("pred_logits", "pred_boxes")
            ]
            losses["loss_ce"] = losses["loss_ce"] + sum(heads) * 0.0
        if self.discriminator is not None:
            masks = drawn[len(layers) - 1]
            losses.update(self._adversarial_losses(images, states, masks, targets, matches))
        return losses

    def _states(self, images: ImageList, batch: int) -> ClipStates:
        maps = clip_features(self.backbone, images.tensor, self.recompute_backbone)
        levels = [maps[name] for name in self.in_features]
        return self.detector(levels, images.image_sizes, tuple(images.tensor.shape[-2:]), batch)

    def _matched_masks(self, features: Tensor, outputs: Outputs, matches: List[Match]) -> Tensor:
        """Masks of the pairs of a batch, (R, T, H / 4, W / 4) logits."""
        rows = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(matches)])
        queries = torch.cat([queries for queries, _ in matches])
        sizes = outputs["size"][rows, None, :2]  # (R, 1, 2) width and height
        centers = outputs["centers"][rows, queries] * sizes  # (R, T, 2) pixels
        return self.masks(features, rows, outputs["states"][rows, queries], centers)

    def _adversarial_losses(
        self,
        images: ImageList,
        states: ClipStates,
        masks: Tensor,
        targets: List[TrackletTargets],
        matches: List[Match],
    ) -> Dict[str, Tensor]:
        """``loss_adv`` and ``loss_disc``, of the frames of clips with objects."""
        clips, pred, true = foregrounds(masks, targets, matches)
        shape = tuple(n // STRIDES[-1] for n in images.tensor.shape[-2:])
        cells = valid_cells(images.image_sizes, STRIDES[-1], shape, self.device)

        def chosen(x: Tensor) -> Tensor:  # (B * T, ...) -> (B, T, ...) -> (b * T, ...)
            return x.unflatten(0, (len(targets), -1))[clips].flatten(0, 1)

        # (B, T, C, h, w) -> (b * T, C, h, w)
        memory = [level[clips].flatten(0, 1) for level in states.memory]
        scene = Scene(chosen(images.tensor), memory, chosen(cells))
        return self.adversarial(self.discriminator, scene, pred, true)

    def start(self, output_size: Size) -> LinkedState:
        """See ``VideoMetaArch.start``."""
        return LinkedState.start(output_size, self.linker.start())

    def step(
        self, images: ImageList, state: LinkedState
    ) -> Tuple[Iterable[Instances], LinkedState]:
        """See ``VideoMetaArch.step``. Masks are computed of the kept queries only."""
        states = self._states(images, batch=1)
        outputs = {**states.layers[-1], "size": frame_sizes(images, 1)}
        queries, probs = self.kept(outputs["pred_logits"][0])
        features = self.masks.features(states.memory, states.valid)
        masks = self._matched_masks(features, outputs, [(queries, queries)])
        # A class is one of the clip: (n, K) -> (n, T, K)
        clip = ClipTracks(probs[:, None].expand(-1, len(images), -1), masks)
        frames, memory = self.linker.update(state.memory, clip)
        state = state.after(images, memory)
        return map(state.finish, frames), state

    def flush(self, state: LinkedState) -> Iterable[Instances]:
        """See ``VideoMetaArch.flush``."""
        return map(state.finish, self.linker.flush(state.memory))
