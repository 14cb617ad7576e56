import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from vis_d2.utils.colors import identity_color
from vis_d2.visualization import TrackVisualizer, track_visualizer

SIZE = (120, 160)
NAMES = ["dog", "cat"]


def tracks(boxes, ids=None, classes=None, size=SIZE):
    """One filled rectangle (x0, y0, x1, y1) per track."""
    masks = torch.zeros((len(boxes), *size), dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    result = Instances(size)
    result.pred_masks = masks
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.track_ids = torch.tensor(ids or range(len(boxes)), dtype=torch.int64)
    result.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    result.scores = torch.linspace(0.9, 0.5, len(boxes))
    return result


def gray(size=SIZE):
    return np.full((*size, 3), 100, dtype=np.uint8)


def labels(monkeypatch, visualizer, frame, instances):
    written = []
    monkeypatch.setattr(
        track_visualizer, "draw_chip", lambda _, text, *rest: written.append((text, *rest))
    )
    visualizer.draw(frame, instances)
    return written


def test_the_fill_is_the_identity_color_blended_in():
    frame = gray()
    picture = TrackVisualizer(alpha=0.5).draw(frame, tracks([(40, 40, 120, 100)], ids=[7]))
    wanted = 0.5 * np.array(identity_color(7)) + 0.5 * 100
    assert np.abs(picture[70, 80] - wanted).max() <= 1
    assert (picture[110, 10] == 100).all()
    assert (frame == 100).all()  # the input is left alone


def test_the_outline_is_the_pure_color():
    picture = TrackVisualizer(alpha=0.0).draw(gray(), tracks([(40, 40, 120, 100)], ids=[7]))
    assert np.abs(picture[99, 80] - np.array(identity_color(7))).max() < 40
    assert (picture[70, 80] == 100).all()


def test_the_color_follows_the_id_not_the_row():
    boxes = [(10, 60, 40, 100), (100, 60, 150, 110)]
    first = TrackVisualizer().draw(gray(), tracks(boxes, ids=[3, 8]))
    swapped = TrackVisualizer().draw(gray(), tracks(boxes[::-1], ids=[8, 3]))
    assert (first[80, 25] == swapped[80, 25]).all()
    assert (first[80, 25] != first[90, 125]).any()


def test_the_label_says_class_id_and_score(monkeypatch):
    instances = tracks(
        [(10, 40, 60, 80), (80, 40, 120, 80), (5, 90, 20, 110)], [4, 5, 6], [1, 0, 9]
    )
    written = [text for text, *_ in labels(monkeypatch, TrackVisualizer(NAMES), gray(), instances)]
    assert written == ["cat #4  90%", "dog #5  70%", "class 9 #6  50%"]


def test_labels_stand_inside_the_frame_and_apart():
    frame = np.zeros((480, 640, 3), dtype=np.uint8)
    boxes = [(0, 0, 60, 40), (10, 5, 70, 45), (600, 450, 640, 480), (300, 200, 340, 230)]
    instances = tracks(boxes, size=(480, 640))
    instances.pred_masks[3] = False  # no label for what cannot be seen
    picture = TrackVisualizer(["giant_panda"], alpha=0.0).draw(frame, instances)
    plates = [(picture == identity_color(i)).all(axis=2).sum() for i in range(4)]
    assert min(plates[:3]) > 1000  # each plate is there, not covered by the next
    assert plates[3] == 0


def test_text_and_lines_grow_with_the_frame(monkeypatch):
    def font(size):
        instances = tracks([(20, 20, 60, 60)], size=size)
        return labels(monkeypatch, TrackVisualizer(NAMES), gray(size), instances)[0][1]

    assert font((1080, 1920)) == 36
    assert font((480, 854)) == 16
    assert font((128, 224)) == 10


@pytest.mark.parametrize(
    ("size", "enlarged"),
    [((128, 224), (480, 840)), ((480, 854), (480, 854)), ((60, 33), (873, 480))],
)
def test_tiny_videos_are_enlarged(size, enlarged):
    visualizer = TrackVisualizer(NAMES, min_side=480)
    assert visualizer.output_size(size) == enlarged
    box = (size[1] // 4, size[0] // 2, size[1] // 2, size[0] * 3 // 4)
    picture = visualizer.draw(gray(size), tracks([box], ids=[7], size=size))
    assert picture.shape == (*enlarged, 3)
    row, column = enlarged[0] * 5 // 8, enlarged[1] * 3 // 8
    wanted = 0.4 * np.array(identity_color(7)) + 0.6 * 100
    assert np.abs(picture[row, column] - wanted).max() <= 1


def test_masks_only_is_an_identity_map():
    picture = TrackVisualizer(masks_only=True).draw(gray(), tracks([(40, 40, 120, 100)], ids=[7]))
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert colors == {(0, 0, 0), identity_color(7)}
    assert (picture != 0).any(axis=2).sum() == 80 * 60


@pytest.mark.parametrize("only", ["cat", "1"])
def test_only_one_class(only):
    instances = tracks([(10, 60, 40, 100), (100, 60, 150, 110)], classes=[0, 1])
    picture = TrackVisualizer(NAMES, only_class=only).draw(gray(), instances)
    assert (picture[:, :80] == 100).all() and (picture[:, 80:] != 100).any()


def test_a_class_that_does_not_exist():
    with pytest.raises(ValueError, match=r"'cow' is no class of this model \(dog, cat\)"):
        TrackVisualizer(NAMES, only_class="cow")


def test_boxes_on_demand():
    instances = tracks([(40, 40, 120, 100)], ids=[7])
    instances.pred_boxes.tensor[0] = torch.tensor([20.0, 20.0, 140.0, 110.0])
    without, drawn = (TrackVisualizer(boxes=b).draw(gray(), instances) for b in (False, True))
    assert np.abs(drawn[110, 80] - np.array(identity_color(7))).max() < 20
    assert (without[110, 80] == 100).all()


def test_a_frame_without_tracks_stays_as_it_is():
    assert (TrackVisualizer(NAMES).draw(gray(), tracks([])) == 100).all()


def test_tracks_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(120, 160\) do not fit .*\(60, 80\)"):
        TrackVisualizer().draw(gray((60, 80)), tracks([(0, 0, 5, 5)]))


def test_labels_without_scores_are_shorter():
    instances = tracks([(40, 60, 60, 70)])
    drawn = [TrackVisualizer(NAMES, scores=s).draw(gray(), instances) for s in (True, False)]
    with_score, without = ((picture != 100).any(axis=2).sum() for picture in drawn)
    assert 0 < without < with_score
