"""What a model of overlapping windows remembers of a video, and how its frames leave."""

from dataclasses import dataclass, replace
from typing import Optional, Tuple

from detectron2.structures import ImageList, Instances
from torch import Tensor

from vis_d2.structures import finish_masks

from .clip_linker import LinkedFrame, LinkerMemory

__all__ = ["LinkedState"]

Size = Tuple[int, int]


@dataclass(frozen=True)
class LinkedState:
    """What is remembered of a video between two windows.

    Attributes:
        output_size: (H, W) of the masks that come out.
        image_size: (h, w) of the frames that the network sees; of the last window.
        padded_size: the same with padding.
        memory: tracks, and the frames that the next window sees again.
    """

    output_size: Size
    image_size: Size
    padded_size: Size
    memory: LinkerMemory

    @classmethod
    def start(cls, output_size: Size, memory: LinkerMemory) -> "LinkedState":
        """Before the first window."""
        return cls(output_size, output_size, output_size, memory)

    def after(self, images: ImageList, memory: LinkerMemory) -> "LinkedState":
        """After a window of ``images``."""
        padded = tuple(images.tensor.shape[-2:])
        return replace(self, image_size=images.image_sizes[0], padded_size=padded, memory=memory)

    def finish(self, frame: LinkedFrame, masks: Optional[Tensor] = None) -> Instances:
        """Ids, class probabilities and masks of one frame at output size.

        Args:
            frame: its masks are (n, h, w) logits of the padded frame, at any size.
            masks: (n, H, W) bool at output size, to take instead.
        """
        if masks is None:
            masks = finish_masks(
                frame.masks,
                padded_size=self.padded_size,
                image_size=self.image_size,
                output_size=self.output_size,
                threshold=0.0,
            )
        return Instances(
            self.output_size,
            track_ids=frame.track_ids,
            class_probs=frame.class_probs,
            pred_masks=masks,
        )
