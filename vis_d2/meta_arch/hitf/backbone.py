"""The last stage of a ResNet, interleaved with intra-frame layers."""

from dataclasses import dataclass
from typing import Callable, List, Sequence, Tuple

import torch
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from vis_d2.layers import checkpointed

from .axial import AxialBlock, AxialBottleneck
from .dual_path import DualPathLayer

__all__ = ["FrameFeatures", "IntraStage", "distinct_frames", "encode_frames"]

CODE_STD = 1.0


@dataclass
class FrameFeatures:
    """What is known of each of F frames by itself.

    Attributes:
        low: (F, C2, h2, w2), res2.
        pixels: (F, C', h, w), not negative.
        code: (F, C, L, 1), not negative.
        valid: (F, h, w) bool, False for padding.
    """

    low: Tensor
    pixels: Tensor
    code: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.valid)

    def select(self, index: Tensor) -> "FrameFeatures":
        """Those of the frames ``index`` (n,)."""
        return FrameFeatures(
            self.low[index], self.pixels[index], self.code[index], self.valid[index]
        )

    def detach(self) -> "FrameFeatures":
        """Without gradient."""
        return FrameFeatures(
            self.low.detach(), self.pixels.detach(), self.code.detach(), self.valid
        )

    @staticmethod
    def join(parts: Sequence["FrameFeatures"]) -> "FrameFeatures":
        """The frames of all, one after the other."""
        columns = zip(*((p.low, p.pixels, p.code, p.valid) for p in parts))
        return FrameFeatures(*(torch.cat(column) for column in columns))


class IntraStage(nn.Module):
    """Learned code of slots, and what happens behind each of the last N blocks of a stage.

    Args:
        num_slots: L.
        code_dim: channels of the code.
        layers: N attention layers between code and pixels.
        axial: N blocks in front of them, or none.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        code_dim: int,
        layers: Sequence[DualPathLayer],
        axial: Sequence[AxialBlock] = (),
    ) -> None:
        super().__init__()
        self.code = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(num_slots, code_dim), std=CODE_STD)
        )
        self.layers = nn.ModuleList(layers)
        self.axial = nn.ModuleList(axial)

    def forward(self, x: Tensor, blocks: nn.Sequential, valid: Tensor) -> Tuple[Tensor, Tensor]:
        """Run the blocks of the stage and the layers between them.

        Args:
            x: (B, C, h', w'), what the stage gets.
            blocks: of the stage, at least N.
            valid: (B, h, w) bool at the size that the stage gives, False for padding.

        Returns:
            Pixels (B, C', h, w) and code (B, C, L, 1), both not negative.
        """
        # (L, C) -> (B, C, L, 1): every frame starts from the same code
        code = self.code.t()[None, :, :, None].expand(len(x), -1, -1, -1)
        first = len(blocks) - len(self.layers)
        for i, block in enumerate(blocks):
            x = block(x, valid) if isinstance(block, AxialBottleneck) else block(x)
            if i < first:
                continue
            if self.axial:
                x = self.axial[i - first](x, valid)
            x, code = self.layers[i - first](x, code, valid)
        return x, code


def encode_frames(
    resnet: ResNet, intra: IntraStage, frames: Tensor, valid: Tensor, recompute: bool = False
) -> FrameFeatures:
    """Run the backbone with its layers on frames that do not see each other.

    Args:
        resnet: detectron2's, with the stages res2 to res5.
        intra: layers of its last stage.
        frames: (F, 3, H, W) normalised.
        valid: (F, h, w) bool at the size of res5.
        recompute: store no activations of res4, res5 and the layers.
    """
    x, low = resnet.stem(frames), None
    *stages, last = zip(resnet.stage_names, resnet.stages)
    for name, stage in stages:
        run: Callable[[Tensor], Tensor] = stage
        if recompute and name == "res4":
            run = checkpointed(stage, stage)
        x = run(x)
        low = x if name == "res2" else low
    blocks = last[1]

    def stage_and_layers(x: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor]:
        return intra(x, blocks, valid)

    run_last: Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]] = stage_and_layers
    if recompute:
        run_last = checkpointed(stage_and_layers, nn.ModuleList([intra, blocks]))
    pixels, code = run_last(x, valid)
    return FrameFeatures(low, pixels, code, valid)


def distinct_frames(frames: Tensor, batch: int) -> Tuple[List[int], Tensor]:
    """Frames of B clips without those that repeat the one before them.

    Clips that reach over the start of their video repeat its first frame.

    Args:
        frames: (B * T, 3, H, W).
        batch: B.

    Returns:
        Rows of ``frames`` to keep, and the place of each frame among them, (B, T).
    """
    length = len(frames) // batch
    rows: List[int] = []
    index = []
    for i, frame in enumerate(frames):
        if i % length == 0 or not torch.equal(frame, frames[i - 1]):
            rows.append(i)
        index.append(len(rows) - 1)
    # (B * T,) -> (B, T)
    return rows, torch.tensor(index, device=frames.device).view(batch, length)
