"""Identities by predicted centre offsets: greedy, online, nearest first."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from vis_d2.modeling import LocationGrid

__all__ = ["CentreAssociation", "Memory", "read_centres", "refine_points"]

CENTRES = ("ctr_peak", "box_center")


@dataclass
class Memory:
    """The tracks of one video, most recently seen first.

    Attributes:
        positions: (M, 2) last centre, x and y in pixels of the network input.
        track_ids: (M,) int64.
        classes: (M,) int64, class when last seen.
        last_seen: (M,) int64, frame index.
        frame: index of the next frame.
        next_id: the next new identity.
    """

    positions: Tensor
    track_ids: Tensor
    classes: Tensor
    last_seen: Tensor
    frame: int = 0
    next_id: int = 0


class CentreAssociation:
    """Gives each detection the identity whose last centre is nearest to where it came from.

    Detections choose in descending score. A detection at o that moved by D looks around o - D and
    takes the nearest track that nobody took in this frame, if that is closer than half the sum
    of its own box's width and height; otherwise it founds a track. Thresholds live here, history
    in the ``Memory`` that goes in and comes out.

    Args:
        new_track_score: detections below it found no track and are left out, in [0, 1].
        max_age: frames after which an unseen track is forgotten: 1 remembers the last frame only,
            -1 remembers for the whole video.
        class_gate: a detection takes only tracks that had its class when last seen.
        max_tracks: tracks remembered; the ones unseen for longest are forgotten first, so that
            memory stays bounded in an endless video.
        centre: where an object's centre is read out, see ``read_centres``.

    Raises:
        ValueError: unknown ``centre``, or ``max_age`` neither -1 nor positive.
    """

    def __init__(
        self,
        *,
        new_track_score: float = 0.03,
        max_age: int = -1,
        class_gate: bool = False,
        max_tracks: int = 1000,
        centre: str = "ctr_peak",
    ) -> None:
        if centre not in CENTRES:
            raise ValueError(f"centre: expected one of {CENTRES}, found {centre!r}")
        if max_age != -1 and max_age < 1:
            raise ValueError(f"max_age: expected -1 or a positive number, found {max_age}")
        self.new_track_score = new_track_score
        self.max_age = max_age
        self.class_gate = class_gate
        self.max_tracks = max_tracks
        self.centre = centre

    def start(self) -> Memory:
        """Memory of a video that has not begun."""
        none = torch.zeros(0, dtype=torch.int64)
        return Memory(torch.zeros(0, 2), none, none.clone(), none.clone())

    def update(self, memory: Memory, detections: Instances) -> Tuple[Instances, Memory]:
        """Name the detections of the next frame.

        Args:
            memory: of the frames before.
            detections: ``pred_boxes``, ``scores``, ``pred_classes``, ``centers`` (n, 2) and
                ``movement`` (n, 2) since the last frame, both in pixels of the network input.

        Returns:
            The detections that have an identity, with ``track_ids`` (n',) int64, and the memory
            for the next frame. ``memory`` itself is not changed.
        """
        centers = detections.centers.detach().float().cpu()
        size = detections.pred_boxes.tensor.detach().float().cpu()
        radius = (size[:, 2] - size[:, 0] + size[:, 3] - size[:, 1]) / 2
        classes = detections.pred_classes.cpu()
        scores = detections.scores.detach().float().cpu()
        distance = torch.cdist(
            centers - detections.movement.detach().float().cpu(),
            memory.positions,
            compute_mode="donot_use_mm_for_euclid_dist",  # the matrix form loses digits
        )
        distance = distance.masked_fill(~self._allowed(memory, classes), float("inf"))
        track_ids, next_id = [-1] * len(scores), memory.next_id
        for i in scores.argsort(descending=True, stable=True).tolist():
            row = self._nearest(distance[i], float(radius[i]))
            if row is not None:
                track_ids[i] = int(memory.track_ids[row])
                distance[:, row] = float("inf")
            elif scores[i] >= self.new_track_score:
                track_ids[i], next_id = next_id, next_id + 1
        ids = torch.tensor(track_ids, dtype=torch.int64)
        named = ids >= 0
        result = detections[named.to(detections.scores.device)]
        result.track_ids = ids[named].to(detections.scores.device)
        seen = Memory(
            centers[named],
            ids[named],
            classes[named],
            torch.full_like(ids[named], memory.frame),
            memory.frame + 1,
            next_id,
        )
        return result, self._merge(seen, memory)

    @staticmethod
    def _nearest(distance: Tensor, radius: float) -> Optional[int]:
        if len(distance) == 0:
            return None
        best, row = distance.min(dim=0)
        return int(row) if best < radius else None

    def _allowed(self, memory: Memory, classes: Tensor) -> Tensor:
        """Tracks that each detection may take, (n, M) bool."""
        allowed = torch.ones(len(classes), len(memory.track_ids), dtype=torch.bool)
        if self.class_gate:
            allowed &= classes[:, None] == memory.classes
        if self.max_age > 0:
            allowed &= memory.frame - memory.last_seen <= self.max_age
        return allowed

    def _merge(self, seen: Memory, old: Memory) -> Memory:
        """The tracks just seen, then those that were not, up to the bound."""
        kept = ~torch.isin(old.track_ids, seen.track_ids)
        if self.max_age > 0:
            kept &= seen.frame - old.last_seen <= self.max_age

        def join(name: str) -> Tensor:
            both = torch.cat([getattr(seen, name), getattr(old, name)[kept]])
            return both[: self.max_tracks]

        return Memory(
            join("positions"),
            join("track_ids"),
            join("classes"),
            join("last_seen"),
            seen.frame,
            seen.next_id,
        )


def refine_points(grid: LocationGrid, centerness: Tensor) -> Tensor:
    """Centerness-weighted mean of each location's 3x3 neighbourhood on its level.

    Args:
        grid: R locations.
        centerness: (R,) in (0, 1).

    Returns:
        (R, 2) x and y in pixels.
    """
    refined: List[Tensor] = []
    points = grid.split(grid.points.T)
    for (height, width), weight, point in zip(grid.sizes, grid.split(centerness), points):
        stacked = torch.cat([weight[None], weight * point])  # (3, h * w)
        # Zeros beyond the border weigh nothing, and the nine of the mean cancel in the ratio.
        summed = F.avg_pool2d(stacked.view(3, height, width), 3, stride=1, padding=1)
        refined.append((summed[1:] / summed[:1].clamp(min=1e-12)).flatten(1))  # (2, h * w)
    return torch.cat(refined, dim=1).T


def read_centres(
    detections: Instances, grid: LocationGrid, centerness: Tensor, centre: str
) -> Tensor:
    """Centre of each detected object.

    Args:
        detections: n detections with ``pred_boxes`` and ``locations``.
        grid: R locations.
        centerness: (R,) in (0, 1).
        centre: "ctr_peak": the location with the highest centerness among those on the
            detection's level and in its box, refined over its neighbours; the box's centre where
            the box holds no location. "box_center": always the box's centre.

    Returns:
        (n, 2) x and y in pixels of the network input.
    """
    boxes = detections.pred_boxes.tensor
    centers = detections.pred_boxes.get_centers()
    if centre == "box_center" or len(boxes) == 0:
        return centers
    inside = ((grid.points >= boxes[:, None, :2]) & (grid.points < boxes[:, None, 2:])).all(dim=2)
    inside &= grid.levels == grid.levels[detections.locations, None]  # (n, R)
    best, location = centerness.expand_as(inside).masked_fill(~inside, -1).max(dim=1)
    return torch.where(best[:, None] < 0, centers, refine_points(grid, centerness)[location])
