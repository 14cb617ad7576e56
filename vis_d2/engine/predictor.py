"""VideoPredictor: from a video source to tracks, with a model and a frame transform."""

import logging
from typing import Dict, Iterator, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from vis_d2.data.augmentation import TestFrameTransform
from vis_d2.inference import TrackletCollector, TrackScores, stream
from vis_d2.structures import VideoInstances
from vis_d2.utils.video_io import Source, open_source

from .checkpointer import build_checkpointer
from .setup import prepare_config

__all__ = ["VideoPredictor"]

logger = logging.getLogger(__name__)

MAX_SCORED_TRACKS = 10000  # of an endless stream; the ones unseen for longest go first


class VideoPredictor:
    """A trained model that takes any video.

    A source is a video file, a folder or glob of frames, a stream URL, a camera index, a list (or
    any iterable) of (H, W, 3) uint8 **BGR** arrays as detectron2's ``DefaultPredictor`` takes, or
    an open ``VideoSource``. It is read once, frame by frame; memory does not grow with its length,
    but for the run-length masks of a result.

    Args:
        cfg: a config with our keys; weights come from ``MODEL.WEIGHTS``.

    Example::

        predictor = VideoPredictor(cfg)
        result = predictor("street.mp4")              # VideoInstances
        for t, tracks in predictor.stream(0):         # the first camera, live
            print(t, tracks.track_ids.tolist(), tracks.scores.tolist())
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        prepare_config(self.cfg)
        self.cfg.freeze()
        self.model = build_model(self.cfg).eval()
        if not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the model finds nothing but chance")
        build_checkpointer(self.cfg, self.model).load(self.cfg.MODEL.WEIGHTS)
        self.transform = TestFrameTransform(self.cfg)

    def __call__(self, source: Source) -> VideoInstances:
        """Find the tracks of a whole video; selected and scored as ``TEST.VIS`` says."""
        collector = None
        for t, tracks in self._tracks(source):
            collector = collector or TrackletCollector(tracks.image_size)
            collector.add(t, tracks)
        return collector.finish(self.model.selection)

    def stream(self, source: Source) -> Iterator[Tuple[int, Instances]]:
        """Yield the tracks of each frame as soon as the model considers them final.

        Args:
            source: see the class.

        Yields:
            Frame index and ``Instances`` at the size of the source: ``track_ids`` (n,) int64,
            ``class_probs`` (n, K), ``pred_masks`` (n, H, W) bool, none of them empty,
            ``pred_boxes``, and, over the frames up to this one, ``scores`` (n,) and
            ``pred_classes`` (n,) int64 of the tracks.
        """
        seen: Dict[int, TrackScores] = {}
        for t, tracks in self._tracks(source):
            shown = tracks.pred_masks.flatten(1).any(dim=1)  # (n, H, W) -> (n, H * W)
            probs = tracks.class_probs.detach().float().cpu()
            for track_id, row, there in zip(tracks.track_ids.tolist(), probs, shown.tolist()):
                # Taken out and put back: the dict stays ordered by when a track was last seen.
                scores_so_far = seen.pop(track_id, None) or TrackScores(len(row))
                scores_so_far.add(row, there)
                seen[track_id] = scores_so_far
            while len(seen) > max(MAX_SCORED_TRACKS, len(tracks)):
                del seen[next(iter(seen))]
            tracks = tracks[shown]
            ids = tracks.track_ids.tolist()
            scores, classes = self.model.selection.running(seen, ids, t + 1)
            device = tracks.pred_masks.device
            tracks.scores = scores.to(device)
            tracks.pred_classes = classes.to(device)
            if not tracks.has("pred_boxes"):
                # detectron2 finds these boxes on the CPU, whatever the device of the masks.
                tracks.pred_boxes = BitMasks(tracks.pred_masks).get_bounding_boxes().to(device)
            yield t, tracks

    @torch.no_grad()
    def _tracks(self, source: Source) -> Iterator[Tuple[int, Instances]]:
        opened = open_source(source)
        try:
            frames = (self.transform(frame) for frame in opened)
            yield from stream(self.model, frames, (opened.height, opened.width))
        finally:
            if opened is not source:
                opened.close()
