"""The contract of every system."""

from abc import ABCMeta, abstractmethod
from typing import Any, Dict, Iterable, List, Tuple, Union

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, ImageList, Instances
from torch import Tensor, nn

from vis_d2.inference import TrackletCollector, TrackScores, TrackSelection, stream

__all__ = ["VideoMetaArch", "common_arguments"]


class VideoMetaArch(nn.Module, metaclass=ABCMeta):
    """Normalises frames, sends clips to training or to the one loop, and packs the answer.

    A system implements ``losses``, ``start``, ``step`` and, where its windows overlap, ``flush``.
    It writes no attribute after construction: what it remembers of a video is the state that
    ``start`` makes and ``step`` hands on.

    Args:
        pixel_mean: per channel, in the order of ``INPUT.FORMAT``, on the scale 0 to 255.
        pixel_std: per channel.
        size_divisibility: padded height and width are multiples of it.
        window: frames that one step sees; 1 = online, 0 = the whole video.
        stride: frames between the starts of two windows, 1 <= stride <= window.
        selection: which tracks of a video are reported.
    """

    def __init__(
        self,
        *,
        pixel_mean: Iterable[float],
        pixel_std: Iterable[float],
        size_divisibility: int,
        window: int,
        stride: int,
        selection: TrackSelection,
    ) -> None:
        super().__init__()
        shape = (-1, 1, 1)  # (C,) -> (C, 1, 1), to broadcast over a frame
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(shape), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(shape), False)
        self.size_divisibility = size_divisibility
        self.window = window
        self.stride = stride
        self.selection = selection

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> Union[Dict[str, Tensor], List[Dict]]:
        """Train on clips, or find the tracks of videos or the objects of single images.

        Args:
            batched_inputs: one dict per clip, video or image.
                Training: ``image``, a list of T tensors uint8 (3, h, w), T the same for all, and
                ``instances``, a list of T Instances whose row i is the same object, with
                ``gt_classes`` and ``gt_ids`` (N,) int64, ``gt_visible`` (N,) bool, ``gt_boxes``
                (Boxes, pixels of the un-padded frame) and ``gt_masks`` (BitMasks).
                Evaluation: ``image``, any iterable of uint8 (3, h, w) tensors, read once; or one
                such tensor, an image. ``height`` and ``width``: output size in pixels (for an
                image optional: its own size).

        Returns:
            Training: a dict of scalar losses, names starting with ``loss_``. Evaluation: for a
            video ``{"instances": VideoInstances}``; for an image ``{"instances": Instances}`` with
            ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` and ``track_ids``, as
            detectron2's own models answer.
        """
        if self.training:
            return self._train(batched_inputs)
        return [self._infer(inputs) for inputs in batched_inputs]

    def preprocess(self, frames: List[Tensor]) -> ImageList:
        """Normalise and pad frames, each uint8 (3, h, w), into one batch (len(frames), 3, H, W)."""
        images = [(f.to(self.device).float() - self.pixel_mean) / self.pixel_std for f in frames]
        return ImageList.from_tensors(images, self.size_divisibility)

    @abstractmethod
    def losses(self, images: ImageList, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        """Losses of B clips of T frames.

        Args:
            images: B * T normalised frames, clip-major.
            clips: the B clip dicts, their ``instances`` on the model's device.

        Returns:
            Scalars whose names start with ``loss_``; finite also when no clip has an object.
        """

    @abstractmethod
    def start(self, output_size: Tuple[int, int]) -> Any:
        """Fresh state for one video whose tracks come out at ``output_size`` (H, W)."""

    @abstractmethod
    def step(self, images: ImageList, state: Any) -> Tuple[Iterable[Instances], Any]:
        """See one window of one video.

        Args:
            images: at most ``window`` normalised frames; the first ``window - stride`` of them
                were in the last window too (none in the first).
            state: of the last step, or of ``start``.

        Returns:
            The tracks of the next frames that are final, in order, and the new state. Tracks of a
            frame are ``Instances`` at output size with ``track_ids`` (n,) int64, ``class_probs``
            (n, K) in [0, 1], ``pred_masks`` (n, H, W) bool, empty where the track is absent but has
            class probabilities, and perhaps ``pred_boxes``. A generator
            is welcome: one frame's masks then exist at a time. It is consumed before the next step.
        """

    def flush(self, state: Any) -> Iterable[Instances]:
        """Tracks of the frames that the last ``step`` held back, in order."""
        return ()

    def _train(self, clips: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        lengths = {len(clip["image"]) for clip in clips}
        if len(lengths) != 1:
            raise ValueError(f"clips of one batch must have one length, found {sorted(lengths)}")
        images = self.preprocess([frame for clip in clips for frame in clip["image"]])
        on_device = [
            {**clip, "instances": [i.to(self.device) for i in clip["instances"]]} for clip in clips
        ]
        return self.losses(images, on_device)

    @torch.no_grad()
    def _infer(self, inputs: Dict[str, Any]) -> Dict[str, Any]:
        frames = inputs["image"]
        if isinstance(frames, Tensor):
            return {"instances": self._infer_image(frames, inputs)}
        size = (int(inputs["height"]), int(inputs["width"]))
        collector = TrackletCollector(size)
        for t, tracks in stream(self, frames, size):
            collector.add(t, tracks)
        return {"instances": collector.finish(self.selection)}

    def _infer_image(self, image: Tensor, inputs: Dict[str, Any]) -> Instances:
        size = (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
        ((_, tracks),) = stream(self, [image], size)
        return _score_image(tracks, self.selection)


def common_arguments(cfg: CfgNode, backbone: Backbone) -> Dict[str, Any]:
    """Arguments of ``VideoMetaArch`` from a config."""
    test = cfg.TEST.VIS
    return {
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": backbone.size_divisibility,
        "window": test.WINDOW,
        "stride": test.STRIDE,
        "selection": TrackSelection(
            mode=test.MODE,
            aggregate=test.AGGREGATE,
            over=test.OVER,
            max_tracks=test.MAX_TRACKS,
            score_threshold=test.SCORE_THRESHOLD,
        ),
    }


def _score_image(tracks: Instances, selection: TrackSelection) -> Instances:
    """The tracks of a video of one frame, in the fields of detectron2's own models."""
    tracks = tracks[tracks.pred_masks.flatten(1).any(dim=1)]  # (n, H, W) -> (n, H * W)
    rows = {int(i): row for row, i in enumerate(tracks.track_ids)}
    scores = {i: TrackScores(tracks.class_probs.shape[1]) for i in rows}
    for i, row in rows.items():
        scores[i].add(tracks.class_probs[row].detach().float().cpu())
    ids, classes, values = selection.select(scores, num_frames=1)
    device = tracks.pred_masks.device
    picked = tracks[torch.tensor([rows[i] for i in ids.tolist()], dtype=torch.int64, device=device)]
    result = Instances(tracks.image_size)
    result.pred_masks = picked.pred_masks
    if picked.has("pred_boxes"):
        result.pred_boxes = picked.pred_boxes
    else:
        # detectron2 finds these boxes on the CPU, whatever the device of the masks.
        result.pred_boxes = BitMasks(picked.pred_masks).get_bounding_boxes().to(device)
    result.scores = values.to(device)
    result.pred_classes = classes.to(device)
    result.track_ids = ids.to(device)
    return result
