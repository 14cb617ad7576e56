"""Drawing the tracks of one frame."""

from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vis_d2.utils.colors import Color, identity_color

from .labels import Box, draw_chip, place_chip, text_mask

if TYPE_CHECKING:  # imports torch
    from detectron2.structures import Instances


class _Shape(NamedTuple):
    mask: np.ndarray  # (H, W) uint8 0/1, at the picture's size
    box: Optional[Box]  # None: the mask is empty
    color: Color


class TrackVisualizer:
    """Draws masks, outlines and labels; one colour per track id, the same in every frame."""

    def __init__(
        self,
        class_names: Sequence[str] = (),
        *,
        alpha: float = 0.4,
        masks_only: bool = False,
        only_class: Optional[str] = None,
        boxes: bool = False,
        min_side: int = 0,
        scores: bool = True,
    ) -> None:
        """
        Args:
            class_names: name of each contiguous class id; ids without a name are shown as numbers.
            alpha: opacity of the mask fill, in [0, 1].
            masks_only: nothing but the masks, opaque on black: an identity map.
            only_class: draw tracks of this class (a name or a contiguous id) and no others.
            boxes: also draw ``pred_boxes``.
            min_side: frames whose shorter side is smaller (pixels) are enlarged to it before
                drawing, so that labels of tiny videos can be read; 0 never enlarges.
            scores: write the score behind the id; annotations have none.

        Raises:
            ValueError: ``only_class`` is no known class.
        """
        self.class_names = list(class_names)
        self.alpha = alpha
        self.masks_only = masks_only
        self.only_class = None if only_class is None else self._class_id(only_class)
        self.boxes = boxes
        self.min_side = min_side
        self.scores = scores

    def output_size(self, size: Tuple[int, int]) -> Tuple[int, int]:
        """(height, width) of what :meth:`draw` returns for frames of ``size`` (height, width)."""
        scale = max(1.0, self.min_side / min(size))
        return round(size[0] * scale), round(size[1] * scale)

    def draw(self, frame: np.ndarray, tracks: "Instances") -> np.ndarray:
        """Draw the tracks of one frame.

        Args:
            frame: (H, W, 3) uint8 BGR; not changed.
            tracks: n tracks at the frame's size, with ``track_ids`` (n,), ``pred_classes`` (n,),
                ``scores`` (n,) and ``pred_masks`` (n, H, W) bool, perhaps ``pred_boxes``.

        Returns:
            A new uint8 BGR picture of :meth:`output_size`.

        Raises:
            ValueError: the tracks are of another size than the frame.
        """
        if tuple(tracks.image_size) != frame.shape[:2]:
            raise ValueError(
                f"tracks of size {tuple(tracks.image_size)} do not fit a frame of "
                f"size {frame.shape[:2]} (height, width)"
            )
        if self.only_class is not None:
            tracks = tracks[tracks.pred_classes == self.only_class]
        canvas = np.zeros_like(frame) if self.masks_only else frame
        canvas = _enlarge(canvas, self.output_size(frame.shape[:2]))
        shapes = self._shapes(tracks, canvas.shape[:2])
        alpha = 1.0 if self.masks_only else self.alpha
        for shape in shapes:
            _fill(canvas, shape, alpha)
        if not self.masks_only:
            self._draw_outlines(canvas, tracks, shapes)
            self._draw_labels(canvas, tracks, shapes)
        return canvas

    def _class_id(self, name: str) -> int:
        if name in self.class_names:
            return self.class_names.index(name)
        if str(name).isdecimal():
            return int(name)
        known = ", ".join(self.class_names) or "none has a name"
        raise ValueError(f"only_class: {name!r} is no class of this model ({known})")

    def _shapes(self, tracks: "Instances", size: Tuple[int, int]) -> List[_Shape]:
        masks = [_enlarge_mask(mask, size) for mask in tracks.pred_masks.cpu().numpy()]
        colors = [identity_color(int(track_id)) for track_id in tracks.track_ids]
        return [_Shape(mask, _mask_box(mask), color) for mask, color in zip(masks, colors)]

    def _draw_outlines(self, canvas: np.ndarray, tracks: "Instances", shapes: List[_Shape]) -> None:
        import cv2

        width = _line_width(canvas)
        for shape in shapes:
            _outline(canvas, shape, width)
        if self.boxes and tracks.has("pred_boxes"):
            scale = canvas.shape[0] / tracks.image_size[0]
            corners = (tracks.pred_boxes.tensor.cpu().numpy() * scale).round().astype(int)
            for (x0, y0, x1, y1), shape in zip(corners.tolist(), shapes):
                cv2.rectangle(canvas, (x0, y0), (x1, y1), shape.color, width, cv2.LINE_AA)

    def _draw_labels(self, canvas: np.ndarray, tracks: "Instances", shapes: List[_Shape]) -> None:
        """Labels come last, so that no mask covers one; sure tracks choose their place first."""
        size = _font_size(canvas)
        taken: List[Box] = []
        for i in np.argsort(-tracks.scores.cpu().numpy(), kind="stable").tolist():
            if shapes[i].box is None:
                continue
            text = self._label(tracks, i)
            chip = text_mask(text, size).shape
            place = place_chip(chip, shapes[i].box, taken, canvas.shape[:2])
            draw_chip(canvas, text, size, place[:2], shapes[i].color)
            taken.append(place)

    def _label(self, tracks: "Instances", i: int) -> str:
        class_id = int(tracks.pred_classes[i])
        known = class_id < len(self.class_names)
        name = self.class_names[class_id] if known else f"class {class_id}"
        score = f"  {100 * float(tracks.scores[i]):.0f}%" if self.scores else ""
        return f"{name} #{int(tracks.track_ids[i])}{score}"


def _line_width(canvas: np.ndarray) -> int:
    return max(1, round(min(canvas.shape[:2]) / 240))


def _font_size(canvas: np.ndarray) -> int:
    # Below 10 pixels letters run together.
    return max(10, round(min(canvas.shape[:2]) / 30))


def _enlarge(frame: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    import cv2

    if frame.shape[:2] == size:
        return frame.copy()
    return cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def _enlarge_mask(mask: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """(h, w) bool -> (H, W) uint8 0/1; the edge becomes a smooth line, not enlarged stairs."""
    import cv2

    values = mask.astype(np.uint8)
    if mask.shape == size:
        return values
    soft = cv2.resize(values * 255, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(soft, (0, 0), 0.5 * size[0] / mask.shape[0])
    return (soft > 127).astype(np.uint8)


def _mask_box(mask: np.ndarray) -> Optional[Box]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _fill(canvas: np.ndarray, shape: _Shape, alpha: float) -> None:
    if shape.box is None:
        return
    x0, y0, x1, y1 = shape.box  # only the mask's own window: many small objects stay cheap
    window, inside = canvas[y0:y1, x0:x1], shape.mask[y0:y1, x0:x1].astype(bool)
    blend = (1.0 - alpha) * window[inside] + alpha * np.float32(shape.color)  # (pixels, 3)
    window[inside] = np.round(blend).astype(np.uint8)


def _outline(canvas: np.ndarray, shape: _Shape, width: int) -> None:
    """Draw a line along the mask, with a thin dark one around it to part like from like."""
    import cv2

    if shape.box is None:
        return
    x0, y0, x1, y1 = shape.box
    window = shape.mask[y0:y1, x0:x1]
    contours, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x0, y0))
    dark = tuple(channel // 4 for channel in shape.color)
    cv2.drawContours(canvas, contours, -1, dark, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, shape.color, width, cv2.LINE_AA)
