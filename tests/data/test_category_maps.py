import itertools

import pytest

from vis_d2.data.category_maps import COCO, DATA_SETS, MAP_NAMES, name_map, normalized
from vis_d2.data.datasets.categories import COCO_TO_YTVIS_2019, COCO_TO_YTVIS_2021

PAIRS = list(itertools.permutations(DATA_SETS, 2))


def test_all_pairs_have_a_map():
    assert set(MAP_NAMES) == {f"{source}-to-{target}" for source, target in PAIRS}
    assert len(COCO) == len(set(COCO.values())) == 80 and max(COCO) == 90


@pytest.mark.parametrize("source, target", PAIRS)
def test_maps_lead_from_known_names_to_known_names(source, target):
    mapping = name_map(source, target)
    assert mapping
    assert set(mapping) <= set(DATA_SETS[source].values())
    assert set(mapping.values()) <= set(DATA_SETS[target].values())


@pytest.mark.parametrize("source, target", PAIRS)
def test_equal_names_are_one_class_except_the_mouse(source, target):
    mapping = name_map(source, target)
    wanted = {normalized(name): name for name in DATA_SETS[target].values()}
    for name in DATA_SETS[source].values():
        if name == "mouse" and "coco" in (source, target):
            assert name not in mapping
        elif normalized(name) in wanted:
            assert mapping[name] == wanted[normalized(name)]


def test_what_changed_between_2019_and_2021():
    forward, back = name_map("ytvis2019", "ytvis2021"), name_map("ytvis2021", "ytvis2019")
    changed = {name: found for name, found in forward.items() if name != found}
    assert changed == {"sedan": "car", "ape": "monkey", "eagle": "bird", "owl": "bird"}
    assert set(DATA_SETS["ytvis2019"].values()) - set(forward) == {"hand"}
    assert {name: found for name, found in back.items() if name != found} == {"car": "sedan"}
    lost = set(DATA_SETS["ytvis2021"].values()) - set(back)
    assert lost == {"bird", "flying_disc", "squirrel", "whale"}


@pytest.mark.parametrize(
    "target, table", [("ytvis2019", COCO_TO_YTVIS_2019), ("ytvis2021", COCO_TO_YTVIS_2021)]
)
def test_coco_to_youtube_vis_is_the_table_of_joint_training(target, table):
    mapping = name_map("coco", target)
    ids = {name: i for i, name in DATA_SETS[target].items()}
    assert {i: ids[mapping[name]] for i, name in COCO.items() if name in mapping} == table


@pytest.mark.parametrize(
    "source, target, name, found",
    [
        ("coco", "ovis", "bus", "Vehical"),
        ("coco", "ovis", "bicycle", "Bicycle"),
        ("coco", "ovis", "train", None),
        ("ovis", "coco", "Vehical", None),
        ("ovis", "coco", "Poultry", "bird"),
        ("ovis", "ytvis2019", "Bird", None),
        ("ovis", "ytvis2021", "Bird", "bird"),
        ("ovis", "ytvis2021", "Giant_panda", "giant_panda"),
        ("ytvis2019", "ovis", "owl", "Bird"),
        ("ytvis2019", "coco", "tennis_racket", "tennis racket"),
        ("ytvis2021", "coco", "flying_disc", "frisbee"),
        ("ytvis2021", "ovis", "duck", "Poultry"),
        ("ytvis2021", "ovis", "shark", None),
    ],
)
def test_a_class_goes_to_the_class_that_contains_it(source, target, name, found):
    assert name_map(source, target).get(name) == found
