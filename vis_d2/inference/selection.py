"""From class scores per frame to scored tracks: a policy, not code in a model."""

from dataclasses import dataclass
from typing import Dict, List, Tuple

import torch
from torch import Tensor

__all__ = ["TrackScores", "TrackSelection"]

MODES = ("ap", "unique")
AGGREGATES = ("mean", "max", "vote")
OVERS = ("present", "all")


@dataclass
class _Sums:
    """Of the class probabilities of some frames.

    Attributes:
        total: (K,) float64, their sum.
        peak: (K,) the largest.
        votes: (K,) int64, frames in which a class is the best one.
        best_total: sum of the best ones.
        count: frames.
    """

    total: Tensor
    peak: Tensor
    votes: Tensor
    best_total: float = 0.0
    count: int = 0

    @classmethod
    def zeros(cls, num_classes: int) -> "_Sums":
        votes = torch.zeros(num_classes, dtype=torch.int64)
        return cls(votes.double(), votes.float(), votes)

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.total + other.total,
            torch.maximum(self.peak, other.peak),
            self.votes + other.votes,
            self.best_total + other.best_total,
            self.count + other.count,
        )

    def add(self, class_probs: Tensor) -> None:
        best, label = class_probs.max(dim=0)
        self.total += class_probs
        self.peak = torch.maximum(self.peak, class_probs)
        self.votes[label] += 1
        self.best_total += float(best)
        self.count += 1


class TrackScores:
    """Running sums of the class scores of one track; its size does not grow with the video.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.shown = _Sums.zeros(num_classes)
        self.hidden = _Sums.zeros(num_classes)

    def add(self, class_probs: Tensor, shown: bool = True) -> None:
        """Add one frame's (K,) class probabilities, in [0, 1]; not ``shown``: its mask is empty."""
        (self.shown if shown else self.hidden).add(class_probs)


class TrackSelection:
    """Which tracks of a video are reported, with which class and score.

    Args:
        mode: "ap" reports the best (track, class) pairs, as average precision rewards; "unique"
            reports every track once, with its best class.
        aggregate: "mean" or "max" of the class probabilities over the frames, or "vote": the
            class that is the best one in most frames, with the mean of the best probabilities.
        over: frames that count: "present" (those with a mask of the track) or "all". Of the latter
            those without a mask count with the probabilities that the model tells for them, and
            with zero where it tells none.
        max_tracks: rows reported per video at the most.
        score_threshold: rows below it are left out, in [0, 1]. A score of zero is never reported.

    Raises:
        ValueError: an unknown mode, aggregate or over, or a threshold that no score could meet or
            that is no number.
    """

    def __init__(
        self,
        *,
        mode: str = "ap",
        aggregate: str = "mean",
        over: str = "present",
        max_tracks: int = 10,
        score_threshold: float = 0.0,
    ) -> None:
        for name, value, allowed in (
            ("mode", mode, MODES),
            ("aggregate", aggregate, AGGREGATES),
            ("over", over, OVERS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")
        if not 0.0 <= score_threshold <= 1.0:
            raise ValueError(
                f"score_threshold: expected a score in [0, 1], found {score_threshold}"
            )
        self.mode = mode
        self.aggregate = aggregate
        self.over = over
        self.max_tracks = max_tracks
        self.score_threshold = score_threshold

    def class_scores(self, track: TrackScores, num_frames: int) -> Tensor:
        """Scores (K,) of one track in a video of ``num_frames`` frames so far."""
        sums = track.shown if self.over == "present" else track.shown + track.hidden
        count = max(sums.count if self.over == "present" else num_frames, 1)
        if self.aggregate == "max":
            return sums.peak
        if self.aggregate == "mean":
            return (sums.total / count).float()
        # Equal votes go to the class with the larger summed probability, then to the lower id.
        order = sums.votes.double() + sums.total / (sums.total.sum() + 1.0)
        scores = torch.zeros_like(sums.peak)
        scores[order.argmax()] = sums.best_total / count
        return scores

    def running(
        self, tracks: Dict[int, TrackScores], ids: List[int], num_frames: int
    ) -> Tuple[Tensor, Tensor]:
        """Score (n,) and class (n,) of the tracks ``ids`` over the frames seen so far."""
        if not ids:
            return torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        scores = torch.stack([self.class_scores(tracks[i], num_frames) for i in ids])  # (n, K)
        best, labels = scores.max(dim=1)
        return best, labels

    def select(
        self, tracks: Dict[int, TrackScores], num_frames: int
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Choose what is reported.

        Returns:
            track ids (n,) int64, classes (n,) int64 and scores (n,) in descending order; equal
            scores keep the order in which the tracks were first seen, then of the class ids.
        """
        if not tracks:
            none = torch.zeros(0, dtype=torch.int64)
            return none, none.clone(), torch.zeros(0)
        ids = torch.tensor(list(tracks), dtype=torch.int64)
        scores = torch.stack([self.class_scores(t, num_frames) for t in tracks.values()])  # (N, K)
        if self.mode == "unique":
            best = scores.argmax(dim=1, keepdim=True)
            scores = torch.zeros_like(scores).scatter(1, best, scores.gather(1, best))
        num_classes = scores.shape[1]
        flat = scores.flatten()  # (N, K) -> (N * K,)
        order = torch.sort(flat, descending=True, stable=True).indices[: self.max_tracks]
        order = order[(flat[order] > 0) & (flat[order] >= self.score_threshold)]
        return ids[order // num_classes], order % num_classes, flat[order].clamp(max=1.0)
