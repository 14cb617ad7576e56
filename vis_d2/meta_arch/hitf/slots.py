"""Who is who: each slot has an identity, and a mask that moves to another slot takes it along."""

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple

__all__ = ["SlotIdentities", "SlotTable"]

MODES = ("slot_iou", "slot")


@dataclass(frozen=True)
class SlotTable:
    """The identities of one video.

    Attributes:
        ids: of each slot that has one.
        last_seen: index of the last frame with a mask, of each slot with an identity.
        classes: class in that frame.
        frame: index of the next frame.
        next_id: the next new identity.
    """

    ids: Dict[int, int]
    last_seen: Dict[int, int]
    classes: Dict[int, int]
    frame: int = 0
    next_id: int = 0


class SlotIdentities:
    """Names the slots of a frame.

    A slot whose mask overlaps a mask of the last frame takes the identity of the slot that had
    it. All other slots keep their own, however long they were empty, or get a fresh one.

    Args:
        mode: "slot_iou", or "slot" to ignore overlaps.
        iou: overlaps above it count. From 0.5 on, a mask can overlap one other only: the masks of
            a frame are disjoint.
        max_gap: frames without a mask after which a slot gets a fresh identity; -1: never.
        fresh_on_class_change: a slot without an overlap that shows another class than before gets
            a fresh identity.

    Raises:
        ValueError: unknown mode, ``iou`` outside of [0.5, 1], or ``max_gap`` below -1.
    """

    def __init__(
        self,
        *,
        mode: str = "slot_iou",
        iou: float = 0.5,
        max_gap: int = -1,
        fresh_on_class_change: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, found {mode!r}")
        if not 0.5 <= iou <= 1:
            raise ValueError(f"iou: expected a number from 0.5 to 1, found {iou}")
        if max_gap < -1:
            raise ValueError(f"max_gap: expected -1 or more, found {max_gap}")
        self.mode = mode
        self.iou = iou
        self.max_gap = max_gap
        self.fresh_on_class_change = fresh_on_class_change

    def start(self) -> SlotTable:
        """Table of a video that has not begun."""
        return SlotTable({}, {}, {})

    def update(
        self,
        table: SlotTable,
        classes: Mapping[int, int],
        overlaps: Mapping[Tuple[int, int], float],
    ) -> Tuple[List[int], SlotTable]:
        """Name the slots of the next frame.

        Args:
            table: of the frames before.
            classes: class of each slot that shows a mask.
            overlaps: IoU of the masks of (slot, slot of the last frame); pairs that are missing
                do not overlap.

        Returns:
            Identities of the slots in the order of ``classes``, no two alike, and the table for
            the next frame. ``table`` itself is not changed.
        """
        moved = self._moved(table, classes, overlaps)
        ids = dict(table.ids)
        for source in moved.values():
            ids.pop(source, None)
        # All at once, from the old table: two slots may have swapped their masks.
        ids.update((slot, table.ids[source]) for slot, source in moved.items())
        next_id = table.next_id
        for slot, label in classes.items():
            if slot not in ids or (slot not in moved and self._is_stale(table, slot, label)):
                ids[slot], next_id = next_id, next_id + 1
        seen = {**table.last_seen, **dict.fromkeys(classes, table.frame)}
        labels = {**table.classes, **classes}
        kept = [{s: x for s, x in old.items() if s in ids} for old in (seen, labels)]
        return [ids[s] for s in classes], SlotTable(ids, *kept, table.frame + 1, next_id)

    def _moved(
        self,
        table: SlotTable,
        classes: Mapping[int, int],
        overlaps: Mapping[Tuple[int, int], float],
    ) -> Dict[int, int]:
        """The slot of the last frame whose mask each slot has, where there is one."""
        if self.mode == "slot":
            return {}
        return {
            slot: source
            for (slot, source), overlap in overlaps.items()
            if overlap > self.iou and slot in classes and self._was_shown(table, source)
        }

    @staticmethod
    def _was_shown(table: SlotTable, slot: int) -> bool:
        return table.last_seen.get(slot) == table.frame - 1

    def _is_stale(self, table: SlotTable, slot: int, label: Optional[int]) -> bool:
        gap = table.frame - table.last_seen[slot] - 1
        too_long = self.max_gap >= 0 and gap > self.max_gap
        return too_long or (self.fresh_on_class_change and label != table.classes[slot])
