"""HITF: hybrid instance-aware temporal fusion, online instance segmentation (AAAI 2022)."""

import logging
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import Tensor
from torch.nn import functional as F

from vis_d2.layers import frozen_statistics
from vis_d2.modeling import Outputs
from vis_d2.structures import valid_cells

from .. import base
from . import build
from .backbone import FrameFeatures, IntraStage, distinct_frames, encode_frames
from .criterion import SlotCriterion
from .decoder import AlignedDecoder
from .emission import Emission, finish_slots, label_overlaps, make_tracks
from .fusion import Memory, TemporalFusion, reference_index
from .heads import SemanticHead, SlotHeads
from .slots import SlotIdentities, SlotTable
from .targets import SlotTargets, slot_targets

__all__ = ["HITF", "HITFState", "TrainingOptions"]

SMALLEST_BATCH = 8  # clips that unscaled, batch-normalised similarities want


@dataclass
class HITFState:
    """What is remembered of a video between two frames.

    Attributes:
        output_size: (H, W) of the masks that come out.
        references: the last R frames, oldest first.
        table: identities of the slots.
        labels: masks of the last frame as (H, W) uint8, 0 for nobody and i + 1 for slot i; None
            before the first frame.
    """

    output_size: Tuple[int, int]
    references: Tuple[Memory, ...]
    table: SlotTable
    labels: Optional[Tensor] = None


@dataclass(frozen=True)
class TrainingOptions:
    """What differs in training only.

    Attributes:
        fused_previous: the frame before is predicted as in inference, for matching; else by the
            heads on what is known of it by itself.
        detach_references: no gradient into references.
        recompute: store no activations of the backbone's upper stages.
        smallest_batch: clips per iteration over all processes below which a warning is due.
    """

    fused_previous: bool = True
    detach_references: bool = False
    recompute: bool = False
    smallest_batch: int = 0


@META_ARCH_REGISTRY.register()
class HITF(base.VideoMetaArch):
    """Online model without boxes: slots compete for pixels, and look at the last R frames.

    Args:
        backbone: with the stages res2 to res5.
        intra: code of the slots, and layers inside of res5.
        fusion: attention to the frames before.
        decoder: from the fused map to the resolution of res2.
        heads: classes and masks.
        semantic_head: auxiliary, for training.
        criterion: matching and losses.
        identities: who is who.
        emission: which slots show something.
        canvas: frames are padded to a square of this side, at least; pixels.
        options: of training.
        kwargs: see ``VideoMetaArch``.

    Raises:
        ValueError: ``canvas`` is neither 0 nor a multiple of the stride of res5 plus 1.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: ResNet,
        intra: IntraStage,
        fusion: TemporalFusion,
        decoder: AlignedDecoder,
        heads: SlotHeads,
        semantic_head: SemanticHead,
        criterion: SlotCriterion,
        identities: SlotIdentities,
        emission: Emission,
        canvas: int,
        options: TrainingOptions,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.intra = intra
        self.fusion = fusion
        self.decoder = decoder
        self.heads = heads
        self.semantic_head = semantic_head
        self.criterion = criterion
        self.identities = identities
        self.emission = emission
        self.canvas = canvas
        self.options = options
        shapes = backbone.output_shape()
        self.low_stride, self.stride_of_pixels = shapes["res2"].stride, shapes["res5"].stride
        if canvas and (canvas - 1) % self.stride_of_pixels:
            raise ValueError(
                f"MODEL.HITF.CANVAS: expected 0 or a multiple of {self.stride_of_pixels}, the "
                f"stride of res5, plus 1, found {canvas}"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments of the constructor from a config."""
        node = cfg.MODEL.HITF
        build.check_choices(cfg)
        backbone = build.build_resnet(cfg)
        shapes = backbone.output_shape()
        low, high = (
            ShapeSpec(channels=shapes[name].channels, stride=shapes[name].stride)
            for name in ("res2", "res5")
        )
        return {
            "backbone": backbone,
            "intra": build.build_intra(cfg, high.channels),
            "fusion": build.build_fusion(cfg, high.channels),
            "decoder": build.build_decoder(cfg, low, high),
            "heads": build.build_heads(cfg),
            "semantic_head": build.build_semantic_head(cfg, low, high),
            "criterion": build.build_criterion(node),
            "identities": build.build_identities(node),
            "emission": build.build_emission(node),
            "canvas": node.CANVAS,
            "options": TrainingOptions(
                fused_previous=node.PM_PREV == "fused",
                detach_references=node.DETACH_REF,
                recompute=node.RECOMPUTE == "backbone",
                smallest_batch=SMALLEST_BATCH if node.ATTN_NORM == "bn" else 0,
            ),
            **base.common_arguments(cfg, backbone),
        }

    def preprocess(self, frames: List[Tensor]) -> ImageList:
        """See ``VideoMetaArch.preprocess``; sides are multiples of the stride, plus 1.

        The cells of all maps then lie on pixels ``stride * i``, which aligned corners mean.
        """
        images = super().preprocess(frames)
        height, width = images.tensor.shape[-2:]
        stride = self.stride_of_pixels
        new = [max(self.canvas, -(-(n - 1) // stride) * stride + 1) for n in (height, width)]
        padded = F.pad(images.tensor, (0, new[1] - width, 0, new[0] - height))
        return ImageList(padded, images.image_sizes)

    def encode(self, frames: Tensor, sizes: Sequence[Tuple[int, int]]) -> FrameFeatures:
        """What is known of frames by themselves.

        Args:
            frames: (F, 3, H, W) normalised and padded.
            sizes: (height, width) of each without its padding.
        """
        valid = self._valid(frames, sizes, self.stride_of_pixels)
        return encode_frames(self.backbone, self.intra, frames, valid, self.options.recompute)

    def remember(self, features: FrameFeatures) -> Memory:
        """What later frames need of encoded frames."""
        return self.fusion.remember(features.pixels, features.code, features.valid)

    def predict(self, features: FrameFeatures, references: Memory) -> Outputs:
        """Classes and mask logits of B encoded frames, see ``SlotHeads.forward``.

        Args:
            features: of the frames.
            references: R per frame, of ``Memory.select``, nearest first.
        """
        pixels, code = self.fusion(features.pixels, features.code, features.valid, references)
        return self.heads(self.decoder(features.low, pixels, features.valid), code)

    def predict_last(self, images: ImageList) -> Outputs:
        """Predict the last of consecutive frames with all references encoded anew.

        The same numbers as those of ``step``, which keeps what it knows of the references; at most
        R + 1 frames matter.
        """
        features = self.encode(images.tensor, images.image_sizes)
        index = torch.arange(len(features), device=self.device)[None]
        return self._predict_position(features, self.remember(features), index, len(features) - 1)

    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """Losses of slots (mask, cls, empty) and of pixels (disc, mask_id, sem).

        The last frame of a clip is charged; the others are its references, and the references of
        the frame before it. A frame that the clip repeats is encoded once.
        """
        self._warn_of_small_batches(len(clips))
        last = len(clips[0]["instances"]) - 1
        rows, index = distinct_frames(images.tensor, len(clips))
        features = self._encode_clips(images, rows, index)
        detach = self.options.detach_references
        memory = self.remember(features.detach() if detach else features)
        now = self._predict_position(features, memory, index, last, learns=True)
        before = self._predict_previous(features, memory, index, max(last - 1, 0))
        targets = self._targets(images, clips)
        with torch.autocast(self.device.type, enabled=False):
            return self.criterion(now, before, targets)

    def start(self, output_size: Tuple[int, int]) -> HITFState:
        """See ``VideoMetaArch.start``."""
        return HITFState(output_size, (), self.identities.start())

    def step(self, images: ImageList, state: HITFState) -> Tuple[Iterable[Instances], HITFState]:
        """See ``VideoMetaArch.step``; one frame at a time."""
        features = self.encode(images.tensor, images.image_sizes)
        newest = self.remember(features)
        known = state.references or (newest,)
        # Nearest first; what is missing is filled with the oldest.
        ages = reference_index(len(known), self.fusion.num_refs)
        references = Memory.join(known).select(torch.tensor([ages], device=self.device))
        outputs = self.predict(features, references)
        labels, slots, probs = self._emit(outputs, images, state.output_size)
        overlaps = {}
        if state.labels is not None:
            overlaps = label_overlaps(labels, state.labels)
        classes = dict(zip(slots.tolist(), probs[slots].argmax(1).tolist()))
        ids, table = self.identities.update(state.table, classes, overlaps)
        kept = (*state.references, newest)[-self.fusion.num_refs :]
        tracks = make_tracks(labels, slots, ids, probs[slots], state.output_size)
        return tracks, HITFState(state.output_size, kept, table, labels)

    def _valid(self, frames: Tensor, sizes: Sequence[Tuple[int, int]], stride: int) -> Tensor:
        height, width = ((n - 1) // stride + 1 for n in frames.shape[-2:])
        return valid_cells(sizes, stride, (height, width), frames.device)

    def _encode_clips(self, images: ImageList, rows: List[int], index: Tensor) -> FrameFeatures:
        """Features of the frames ``rows``; with detached references only some learn."""
        if not self.options.detach_references:
            return self.encode(images.tensor[rows], [images.image_sizes[i] for i in rows])
        first = -2 if self.criterion.supervise_previous else -1
        learning = index[:, first:].unique().tolist()
        others = [i for i in range(len(rows)) if i not in set(learning)]
        parts = []
        for chosen, enabled in ((learning, True), (others, False)):
            if chosen:
                picked = [rows[i] for i in chosen]
                with torch.set_grad_enabled(enabled):
                    sizes = [images.image_sizes[i] for i in picked]
                    parts.append(self.encode(images.tensor[picked], sizes))
        order = torch.tensor(learning + others, device=self.device).argsort()
        return FrameFeatures.join(parts).select(order)

    def _predict_position(
        self,
        features: FrameFeatures,
        memory: Memory,
        index: Tensor,
        position: int,
        learns: bool = False,
    ) -> Outputs:
        """Outputs of the frame at ``position`` of each of B clips.

        Args:
            features: of all distinct frames.
            memory: of the same.
            index: (B, T) row of each frame of each clip.
            position: in [0, T).
            learns: with the auxiliary head.
        """
        chosen = features.select(index[:, position])
        ages = reference_index(position, self.fusion.num_refs)
        outputs = self.predict(chosen, memory.select(index[:, ages]))
        if learns:
            outputs["semantic"] = self.semantic_head(chosen.low, chosen.pixels)
        return outputs

    def _predict_previous(
        self, features: FrameFeatures, memory: Memory, index: Tensor, position: int
    ) -> Optional[Outputs]:
        if not self.criterion.needs_previous:
            return None
        if self.criterion.supervise_previous:
            return self._predict_position(features, memory, index, position, learns=True)
        # For matching only: no gradient, and no second entry into the running statistics.
        with torch.no_grad(), frozen_statistics(self):
            if self.options.fused_previous:
                return self._predict_position(features, memory, index, position)
            chosen = features.select(index[:, position])
            decoded = self.decoder(chosen.low, chosen.pixels, chosen.valid)
            return self.heads(decoded, chosen.code)

    def _targets(self, images: ImageList, clips: List[Dict[str, Any]]) -> List[SlotTargets]:
        """Truth of the last two frames of each clip, at the resolution of the mask logits."""
        length = len(clips[0]["instances"])
        sizes = [images.image_sizes[b * length] for b in range(len(clips))]
        valid = self._valid(images.tensor, sizes, self.low_stride)
        return [
            slot_targets((clip["instances"][-2:] * 2)[:2], cells, self.low_stride)
            for clip, cells in zip(clips, valid)
        ]

    def _emit(
        self, outputs: Outputs, images: ImageList, output_size: Tuple[int, int]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Pixels of the slots as labels (H, W) uint8, slots with pixels (n,), scores (L, K)."""
        probs = outputs["pred_logits"][0].float().softmax(-1)
        labels, best = finish_slots(
            outputs["pred_masks"][0],
            padded_size=tuple(images.tensor.shape[-2:]),
            image_size=images.image_sizes[0],
            output_size=output_size,
            threshold=self.emission.mask_threshold,
        )
        return self.emission.choose(probs, labels, best)

    def _warn_of_small_batches(self, num_clips: int) -> None:
        total = num_clips * comm.get_world_size()
        if total < self.options.smallest_batch:
            log_first_n(
                logging.WARNING,
                f"{total} clips per iteration are few for batch-normalised attention, which wants "
                f"{self.options.smallest_batch} over all processes: enlarge SOLVER.IMS_PER_BATCH, "
                "or set MODEL.HITF.ATTN_NORM to scaled_ln",
                name=__name__,
            )
