"""Gather the tracks of a video frame by frame, as run lengths."""

from typing import Dict, List, Tuple

from detectron2.structures import Instances

from vis_d2.structures import RLE, VideoInstances, rle

from .selection import TrackScores, TrackSelection

__all__ = ["TrackletCollector"]


class TrackletCollector:
    """Takes what ``stream`` gives and keeps run lengths only, so one frame's masks exist at a time.

    Args:
        image_size: (H, W) of the frames that come in.
    """

    def __init__(self, image_size: Tuple[int, int]) -> None:
        self.image_size = image_size
        self.num_frames = 0
        self.scores: Dict[int, TrackScores] = {}
        self._masks: Dict[int, Dict[int, RLE]] = {}

    def add(self, t: int, tracks: Instances) -> None:
        """Take the tracks of frame t.

        Args:
            t: frame index; every frame comes once, in order.
            tracks: Instances at ``image_size`` with ``track_ids`` (n,), ``class_probs`` (n, K) and
                ``pred_masks`` (n, H, W) bool. A track with an empty mask is absent from this frame;
                its probabilities count where the selection's ``over`` is "all". With no mask in
                any frame it is no track.

        Raises:
            ValueError: a frame out of order, another image size, or one id twice in a frame.
        """
        if t != self.num_frames:
            raise ValueError(f"expected frame {self.num_frames}, found frame {t}")
        if tuple(tracks.image_size) != tuple(self.image_size):
            raise ValueError(
                f"frame {t}: expected tracks at size {self.image_size}, found {tracks.image_size}"
            )
        ids = tracks.track_ids.tolist()
        if len(set(ids)) != len(ids):
            raise ValueError(f"frame {t}: track ids must be unique, found {ids}")
        self.num_frames += 1
        probs = tracks.class_probs.detach().float().cpu()
        for i, track_id in enumerate(ids):
            # One mask at a time: encoding needs a second, transposed copy of what it is given.
            mask = rle.encode(tracks.pred_masks[i : i + 1])[0]
            scores = self.scores.setdefault(track_id, TrackScores(probs.shape[1]))
            scores.add(probs[i], shown=mask is not None)
            if mask is not None:
                self._masks.setdefault(track_id, {})[t] = mask

    def finish(self, selection: TrackSelection) -> VideoInstances:
        """Choose and score the tracks by ``selection``; the collector may go on collecting."""
        shown = {i: self.scores[i] for i in self._masks}
        track_ids, classes, scores = selection.select(shown, self.num_frames)
        segmentations = [self._segmentation(i) for i in track_ids.tolist()]
        return VideoInstances(
            self.image_size, self.num_frames, scores, classes, track_ids, segmentations
        )

    def _segmentation(self, track_id: int) -> List:
        masks = self._masks[track_id]
        return [masks.get(t) for t in range(self.num_frames)]
