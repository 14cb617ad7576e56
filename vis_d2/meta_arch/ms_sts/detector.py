"""From a backbone's maps to what is known of every query in every frame of a clip."""

from dataclasses import dataclass
from math import log
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vis_d2.layers import MLP, sine_encoding
from vis_d2.modeling import Outputs

from .decoder import ClipDecoder
from .encoder import ClipEncoder
from .levels import STRIDES, Levels

__all__ = ["ClipDetector", "ClipStates", "ClipTransformer"]

Size = Tuple[int, int]
GROUPS = 32  # of the normalisation behind the input projections
FIRST_SIZE = -2.0  # logit of the first boxes' width and height: an eighth of the frame


@dataclass(frozen=True)
class ClipStates:
    """What is known of B clips of T frames.

    Attributes:
        memory: the encoded frames, (B, T, C, h, w) at strides 8, 16 and 32, zero at padding.
        layers: of each layer of the decoder: ``pred_logits`` (B, N, K), ``pred_boxes``
            (B, N, T, 4) in [0, 1], centre and size as shares of the frame without padding,
            ``states`` (B, N, C), the queries, and ``centers`` (B, N, T, 2), shares as well: where
            the layer looked, the centres that it was given.
        valid: for each map of ``memory`` its cells (B, h, w) that are no padding, bool; None: all.
    """

    memory: List[Tensor]
    layers: List[Outputs]
    valid: Optional[List[Tensor]] = None


class ClipTransformer(nn.Module):
    """Encoder and decoder, and where they start.

    Args:
        channels: C.
        encoder: of the cells of all levels.
        decoder: of the queries.
    """

    def __init__(self, *, channels: int, encoder: ClipEncoder, decoder: ClipDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES), channels))
        self.reference_points = nn.Linear(channels, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def positions(self, levels: Levels, batch: int) -> Tensor:
        """Encodings of the cells' places and levels, (B, S, C)."""
        cells = sum(levels.areas)
        device, channels = self.level_embed.device, self.level_embed.shape[1]
        valid = levels.valid
        if valid is None:
            valid = torch.ones(batch, cells, dtype=torch.bool, device=device)
        encoded = [
            # (B, C, h, w) -> (B, C, h * w) -> (B, h * w, C)
            sine_encoding(mask, (channels // 2, channels // 2), offset=-0.5)
            .flatten(2)
            .transpose(1, 2)
            + embed
            for mask, embed in zip(levels.maps(valid), self.level_embed)
        ]
        return torch.cat(encoded, dim=1)


class ClipDetector(nn.Module):
    """Deformable transformer over the frames of a clip, and the heads of classes and boxes.

    Args:
        in_channels: of the backbone's maps at strides 8, 16 and 32.
        channels: C, a multiple of 32.
        encoder: of the cells of all levels.
        decoder: of the queries.
        num_queries: N.
        num_logits: K, logits of a query.
        prior: probability of every class at the start; None: as the random weights say.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        encoder: ClipEncoder,
        decoder: ClipDecoder,
        num_queries: int = 300,
        num_logits: int,
        prior: Optional[float] = 0.01,
    ) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(_projection(c, channels, 1) for c in in_channels)
        # The fourth level comes from the backbone's last map, not from its projection.
        self.input_proj.append(_projection(in_channels[-1], channels, 3))
        self.transformer = ClipTransformer(channels=channels, encoder=encoder, decoder=decoder)
        depth = len(decoder.layers)
        self.class_embed = nn.ModuleList(nn.Linear(channels, num_logits) for _ in range(depth))
        self.bbox_embed = nn.ModuleList(
            MLP(in_dim=channels, hidden_dim=channels, out_dim=4, num_layers=3) for _ in range(depth)
        )
        self.query_embed = nn.Embedding(num_queries, 2 * channels)
        self._initialise(prior)

    def _initialise(self, prior: Optional[float]) -> None:
        for head in self.class_embed:
            if prior is not None:
                nn.init.constant_(head.bias, -log((1 - prior) / prior))
        for i, head in enumerate(self.bbox_embed):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
            if i == 0:  # later layers move boxes that have a size already
                nn.init.constant_(head.layers[-1].bias[2:], FIRST_SIZE)

    def forward(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[Size],
        padded_size: Size,
        batch: int,
    ) -> ClipStates:
        """Detect in B clips.

        Args:
            maps: the backbone's, (B * T, c, h, w) at strides 8, 16 and 32, clip-major.
            image_sizes: (height, width) of the B * T frames without padding, in pixels; the same
                for all frames of a clip.
            padded_size: (H, W) with padding, multiples of 32.
            batch: B.

        Raises:
            ValueError: the maps are not those of such frames.
        """
        _check(maps, padded_size, batch)
        length = len(maps[0]) // batch
        shapes = [tuple(level.shape[-2:]) for level in maps]
        shapes.append(tuple(-(-int(n) // 2) for n in shapes[-1]))
        levels = Levels.of(shapes, image_sizes[::length], maps[0].device)
        # (B * T, S, C) -> (B, T, S, C)
        cells = self._project(maps, levels, length).unflatten(0, (batch, length))
        transformer = self.transformer
        position = transformer.positions(levels, batch)
        memory = transformer.encoder(cells, position, levels)
        query_pos, target = self.query_embed.weight.chunk(2, dim=1)
        points = transformer.reference_points(query_pos).float().sigmoid()
        states = transformer.decoder(target, query_pos, points, memory, levels, self.bbox_embed)
        layers = [
            {
                "pred_logits": head(state.instances).float(),
                "pred_boxes": state.boxes.transpose(1, 2),  # (B, T, N, 4) -> (B, N, T, 4)
                "states": state.instances,
                "centers": state.centres.transpose(1, 2),  # (B, T, N, 2) -> (B, N, T, 2)
            }
            for head, state in zip(self.class_embed, states)
        ]
        # (B, T, S, C) -> (B, T, C, S) -> (B, T, C, h, w) of each level but the last
        encoded = levels.maps(memory.transpose(2, 3))[:-1]
        valid = None if levels.valid is None else levels.maps(levels.valid)[:-1]
        return ClipStates(encoded, layers, valid)

    def _project(self, maps: Sequence[Tensor], levels: Levels, length: int) -> Tensor:
        """The cells of all levels, (B * T, S, C), zero at padding."""
        padding, inputs = levels.padding(length), [*maps, maps[-1]]
        if padding is None:
            outputs = [project(x) for project, x in zip(self.input_proj, inputs)]
        else:
            masks = levels.maps(~padding)
            # The last level's cells look at their neighbours.
            inputs[-1] = inputs[-1].masked_fill(~masks[-2][:, None], 0.0)
            outputs = [
                _masked_norm(conv(x), norm, mask)
                for (conv, norm), x, mask in zip(self.input_proj, inputs, masks)
            ]
        # (B * T, C, h, w) -> (B * T, C, h * w) -> (B * T, S, C)
        return torch.cat([out.flatten(2) for out in outputs], dim=2).transpose(1, 2).contiguous()


def _check(maps: Sequence[Tensor], padded_size: Size, batch: int) -> None:
    height, width = (int(n) for n in padded_size)
    found = [tuple(int(n) for n in level.shape[-2:]) for level in maps]
    wanted = [(height // stride, width // stride) for stride in STRIDES[:3]]
    if height % 32 or width % 32 or found != wanted:
        raise ValueError(
            f"maps of {found} cells for frames padded to {(height, width)}: expected {wanted}, of "
            f"frames padded to multiples of 32"
        )
    if batch < 1 or len(maps[0]) % batch:
        raise ValueError(f"{len(maps[0])} frames cannot be {batch} clips of one length")


def _projection(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    stride, padding = (1, 0) if kernel == 1 else (2, 1)
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, channels))


def _masked_norm(x: Tensor, norm: nn.GroupNorm, valid: Tensor) -> Tensor:
    """Group normalisation (F, C, h, w) by the cells ``valid`` (F, h, w); zero elsewhere.

    A frame does not change with the padding that other frames of a batch bring it.
    """
    mask = valid[:, None, None]  # (F, h, w) -> (F, 1, 1, h, w)
    # (F, C, h, w) -> (F, groups, C / groups, h, w)
    groups = x.float().unflatten(1, (norm.num_groups, -1)).masked_fill(~mask, 0.0)
    axes = (2, 3, 4)
    number = mask.sum(axes, keepdim=True) * groups.shape[2]
    centred = (groups - groups.sum(axes, keepdim=True) / number).masked_fill(~mask, 0.0)
    variance = centred.square().sum(axes, keepdim=True) / number
    out = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2)  # -> (F, C, h, w)
    # (C,) -> (C, 1, 1)
    out = out * norm.weight[:, None, None] + norm.bias[:, None, None]
    return out.masked_fill(~valid[:, None], 0.0)
