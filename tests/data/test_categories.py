import pytest

from vis_d2.data.datasets.categories import (
    COCO_TO_YTVIS_2019,
    COCO_TO_YTVIS_2021,
    OVIS,
    YTVIS_2019,
    YTVIS_2021,
)


@pytest.mark.parametrize("names, count", [(YTVIS_2019, 40), (YTVIS_2021, 40), (OVIS, 25)])
def test_lists_are_complete_and_without_repetition(names, count):
    assert len(names) == len(set(names)) == count


def test_differences_between_the_two_editions():
    renamed = {"sedan": "car"}
    old = {renamed.get(name, name) for name in YTVIS_2019}
    assert old - set(YTVIS_2021) == {"ape", "hand", "owl", "eagle"}
    assert set(YTVIS_2021) - old == {"bird", "flying_disc", "squirrel", "whale"}


COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 7: "train", 8: "truck",
    9: "boat", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 21: "cow", 22: "elephant",
    23: "bear", 24: "zebra", 25: "giraffe", 34: "frisbee", 35: "skis", 36: "snowboard",
    41: "skateboard", 42: "surfboard", 43: "tennis racket",
}  # fmt: skip
SAME = {
    "bicycle": "motorbike",
    "motorcycle": "motorbike",
    "frisbee": "flying_disc",
    "skis": "snowboard",
    "tennis racket": "tennis_racket",
}


@pytest.mark.parametrize(
    "mapping, names, synonyms",
    [(COCO_TO_YTVIS_2019, YTVIS_2019, {"car": "sedan"}), (COCO_TO_YTVIS_2021, YTVIS_2021, {})],
)
def test_coco_maps_to_what_the_names_say(mapping, names, synonyms):
    expected = {}
    for coco_id, name in COCO.items():
        target = {**SAME, **synonyms}.get(name, name)
        if target in names:
            expected[coco_id] = names.index(target) + 1
    assert mapping == expected


@pytest.mark.parametrize("mapping", [COCO_TO_YTVIS_2019, COCO_TO_YTVIS_2021])
def test_inverting_keeps_the_closer_of_two(mapping):
    inverse = {target: source for source, target in mapping.items()}
    assert COCO[inverse[mapping[2]]] == "motorcycle"
    assert COCO[inverse[mapping[35]]] == "snowboard"
