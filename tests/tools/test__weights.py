import pytest

from vis_d2.data.category_maps import DATA_SETS
from vis_d2.tools._weight_names import RESNETS
from vis_d2.tools._weights import choose_classes, class_rows, weights_parser

NAMES = {key: list(names.values()) for key, names in DATA_SETS.items()}


def test_the_data_set_decides_where_classes_go():
    assert choose_classes("auto", NAMES["ytvis2021"], 40, 80) == "coco-to-ytvis2021"
    assert choose_classes("auto", NAMES["ovis"], 25, 80) == "none"
    assert choose_classes("auto", NAMES["ytvis2021"], 40, 81) == "none"
    assert choose_classes("coco-to-ytvis2019", NAMES["ytvis2019"], 40, 0) == "none"
    assert choose_classes("coco-to-ytvis2019", [], 40, 80) == "coco-to-ytvis2019"
    with pytest.raises(ValueError, match="80 classes to 40, but the file has 80 .* model 25"):
        choose_classes("coco-to-ytvis2019", NAMES["ovis"], 25, 80)


@pytest.mark.parametrize(
    "name, pairs",
    [
        ("coco-to-ytvis2019", {"sedan": "car", "motorbike": "motorcycle", "dog": "dog"}),
        ("coco-to-ytvis2021", {"car": "car", "flying_disc": "frisbee", "snowboard": "snowboard"}),
    ],
)
def test_rows_lead_from_a_class_to_its_counterpart(name, pairs):
    ours, theirs = NAMES[name[len("coco-to-") :]], NAMES["coco"]
    rows = class_rows(name)
    assert {target: theirs[rows[ours.index(target)]] for target in pairs} == pairs
    assert ours.index("giant_panda") not in rows
    assert class_rows("none") is None


def test_pairs_may_stand_before_and_behind_options():
    line = ["theirs.pth", "SEED", "3", "--config-file", "a.yaml", "--output", "o.pth", "X", "1"]
    args = weights_parser("", RESNETS).parse_intermixed_args(line)
    assert (args.path, args.opts) == ("theirs.pth", ["SEED", "3", "X", "1"])
    assert (args.source, args.classes, args.allow_pickle) == ("auto", "auto", False)


def test_logits_by_category_id_lose_the_one_without_a_class():
    assert choose_classes("auto", NAMES["ytvis2019"], 40, 42) == "ids-to-ytvis2019"
    assert choose_classes("auto", NAMES["ytvis2021"], 40, 42) == "none"  # other ids
    rows = class_rows("ids-to-ytvis2019")
    assert rows == {**{c: c + 1 for c in range(40)}, 40: 41}
    with pytest.raises(ValueError, match="42 classes to 40, but the file has 80"):
        choose_classes("ids-to-ytvis2019", NAMES["ytvis2019"], 40, 80)
