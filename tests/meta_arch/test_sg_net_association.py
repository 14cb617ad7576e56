"""Identities on detections made by hand."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from vis_d2.meta_arch.sg_net.association import CentreAssociation, read_centres, refine_points
from vis_d2.modeling import LocationGrid


def detect(centers, movement=None, side=20.0, scores=None, classes=None) -> Instances:
    """Detections of one frame: square boxes around their centres."""
    centers = torch.tensor(centers, dtype=torch.float32).view(-1, 2)
    n = len(centers)
    moved = torch.zeros(n, 2) if movement is None else torch.tensor(movement, dtype=torch.float32)
    return Instances(
        (200, 200),
        pred_boxes=Boxes(torch.cat([centers - side / 2, centers + side / 2], dim=1)),
        scores=torch.linspace(0.9, 0.5, n) if scores is None else torch.tensor(scores),
        pred_classes=torch.tensor(classes if classes else [0] * n, dtype=torch.int64),
        centers=centers,
        movement=moved.view(-1, 2),
    )


def run(association, frames):
    """Track ids of each frame, by detection."""
    memory, ids = association.start(), []
    for detections in frames:
        tracks, memory = association.update(memory, detections)
        ids.append(tracks.track_ids.tolist())
    return ids


def crossing(with_movement: bool):
    """Two objects on one line that change sides, 30 px per frame, with boxes of 40 px."""
    frames = []
    for t in range(6):
        left, right = 20.0 + 30 * t, 170.0 - 30 * t
        movement = [[30.0, 0.0], [-30.0, 0.0]] if with_movement and t else [[0.0, 0.0]] * 2
        frames.append(detect([[left, 50.0], [right, 50.0]], movement, side=40.0))
    return frames


def test_two_fast_crossing_objects_keep_their_ids():
    assert run(CentreAssociation(), crossing(with_movement=True)) == [[0, 1]] * 6


def test_without_movement_the_crossing_objects_swap():
    ids = run(CentreAssociation(), crossing(with_movement=False))
    assert ids[-1] == [1, 0]


def test_a_gap_keeps_the_id_for_the_whole_video():
    frames = [detect([[50, 50]]), detect([]), detect([]), detect([[52, 50]])]
    assert run(CentreAssociation(max_age=-1), frames) == [[0], [], [], [0]]
    assert run(CentreAssociation(max_age=2), frames) == [[0], [], [], [1]]
    assert run(CentreAssociation(max_age=3), frames) == [[0], [], [], [0]]


def test_max_age_one_means_the_last_frame():
    frames = [detect([[50, 50]]), detect([[50, 50]]), detect([]), detect([[50, 50]])]
    assert run(CentreAssociation(max_age=1), frames) == [[0], [0], [], [1]]


def test_a_detection_exactly_at_the_radius_founds_a_track():
    first = detect([[50, 50]])
    # Half the sum of a box of 20 x 20 is 20; the distance must be less.
    assert run(CentreAssociation(), [first, detect([[70, 50]])]) == [[0], [1]]
    assert run(CentreAssociation(), [first, detect([[69.5, 50]])]) == [[0], [0]]


def test_movement_is_taken_off_the_current_centre():
    first = detect([[50, 50]])
    assert run(CentreAssociation(), [first, detect([[150, 90]], [[100, 40]])]) == [[0], [0]]
    assert run(CentreAssociation(), [first, detect([[150, 90]], [[-100, -40]])]) == [[0], [1]]


def test_higher_scores_choose_first_and_a_track_is_taken_once():
    first = detect([[50, 50]])
    second = detect([[52, 50], [50, 50]], scores=[0.4, 0.8])
    assert run(CentreAssociation(), [first, second]) == [[0], [1, 0]]


def test_the_position_remembered_is_the_centre_and_not_the_guess():
    frames = [detect([[50, 50]]), detect([[65, 50]], [[15, 0]]), detect([[80, 50]], [[15, 0]])]
    memory = CentreAssociation().start()
    for detections in frames:
        _, memory = CentreAssociation().update(memory, detections)
    assert memory.positions.tolist() == [[80, 50]]


def test_class_gate():
    frames = [detect([[50, 50]], classes=[1]), detect([[50, 50]], classes=[2])]
    assert run(CentreAssociation(), frames) == [[0], [0]]
    assert run(CentreAssociation(class_gate=True), frames) == [[0], [1]]


def test_weak_detections_continue_tracks_but_found_none():
    frames = [
        detect([[50, 50]], scores=[0.9]),
        detect([[50, 50], [150, 150]], scores=[0.1, 0.2]),
    ]
    association = CentreAssociation(new_track_score=0.3)
    memory = association.start()
    _, memory = association.update(memory, frames[0])
    tracks, _ = association.update(memory, frames[1])
    assert tracks.track_ids.tolist() == [0] and tracks.centers.tolist() == [[50, 50]]


def test_ids_start_again_in_the_next_video():
    association = CentreAssociation()
    frames = [detect([[50, 50], [120, 120]]), detect([[50, 50]])]
    assert run(association, frames) == run(association, frames) == [[0, 1], [0]]


def test_the_memory_that_went_in_is_not_changed():
    association = CentreAssociation()
    _, memory = association.update(association.start(), detect([[50, 50]]))
    before = (memory.positions.clone(), memory.frame, memory.next_id)
    association.update(memory, detect([[60, 50], [150, 150]]))
    assert torch.equal(memory.positions, before[0]) and (memory.frame, memory.next_id) == before[1:]


def test_memory_is_bounded_and_forgets_the_longest_unseen():
    association = CentreAssociation(max_tracks=2)
    memory = association.start()
    for x in (20, 80, 140):
        _, memory = association.update(memory, detect([[x, 50]]))
    assert memory.track_ids.tolist() == [2, 1]
    tracks, memory = association.update(memory, detect([[20, 50], [80, 50]]))
    assert tracks.track_ids.tolist() == [3, 1]  # the first was forgotten


def test_settings_are_checked():
    with pytest.raises(ValueError, match="'corner'"):
        CentreAssociation(centre="corner")
    with pytest.raises(ValueError, match="found 0"):
        CentreAssociation(max_age=0)


def make_grid() -> LocationGrid:
    return LocationGrid.build([(4, 5), (2, 3)], (8, 16), torch.device("cpu"))


def test_refined_points_are_weighted_means_of_the_neighbours():
    grid = make_grid()
    centerness = torch.zeros(26)
    centerness[7], centerness[8] = 0.75, 0.25  # (20, 12) and (28, 12)
    refined = refine_points(grid, centerness)
    assert refined[7].tolist() == pytest.approx([22, 12])
    assert refined[6].tolist() == pytest.approx([20, 12])  # (28, 12) is no neighbour of (12, 12)
    uniform = refine_points(grid, torch.ones(26))
    assert uniform[0].tolist() == pytest.approx([8, 8])  # corner: the four that exist
    assert uniform[7].tolist() == pytest.approx([20, 12])


def locate(box, centerness, centre="ctr_peak", location=7):
    detections = Instances(
        (32, 40), pred_boxes=Boxes(torch.tensor([box])), locations=torch.tensor([location])
    )
    return read_centres(detections, make_grid(), centerness, centre)[0].tolist()


def test_centre_is_the_peak_inside_the_box_on_the_own_level():
    centerness = torch.full((26,), 1e-9)
    centerness[0] = 0.9  # outside the box
    centerness[24] = 0.9  # on the other level
    centerness[12] = 0.5  # (20, 20)
    box = [10.0, 10.0, 35.0, 30.0]
    assert locate(box, centerness) == pytest.approx([20, 20], abs=1e-3)
    assert locate(box, centerness, "box_center") == [22.5, 20]


def test_a_box_without_locations_has_its_own_centre():
    assert locate([5.0, 5.0, 7.0, 7.0], torch.ones(26)) == [6, 6]


def test_no_detections_no_centres():
    none = Instances(
        (32, 40), pred_boxes=Boxes(torch.zeros(0, 4)), locations=torch.zeros(0, dtype=torch.int64)
    )
    assert read_centres(none, make_grid(), torch.ones(26), "ctr_peak").shape == (0, 2)
