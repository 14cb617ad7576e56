"""The number of classes: the config's, or that of the first data set."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from vis_d2.config import add_common_config
from vis_d2.modeling import num_classes


@pytest.fixture(autouse=True, scope="module")
def data_sets():
    for name, classes in {"three_kinds": ["a", "b", "c"], "two_kinds": ["a", "b"]}.items():
        MetadataCatalog.get(name).set(thing_classes=classes)
    yield
    MetadataCatalog.pop("three_kinds")
    MetadataCatalog.pop("two_kinds")


def make_cfg(train=(), test=(), number=-1) -> CfgNode:
    cfg = get_cfg()
    add_common_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.MODEL.VIS.NUM_CLASSES = number
    return cfg


def test_the_config_decides_where_it_has_a_number():
    assert num_classes(make_cfg(train=("three_kinds",), number=7)) == 7
    assert num_classes(make_cfg(number=7)) == 7  # no data set is asked


def test_otherwise_the_first_training_set_and_without_one_the_first_test_set():
    assert num_classes(make_cfg(("three_kinds", "two_kinds"), ("two_kinds",))) == 3
    assert num_classes(make_cfg((), ("two_kinds", "three_kinds"))) == 2


def test_nobody_to_ask_is_an_error():
    with pytest.raises(ValueError, match="NUM_CLASSES is -1 and the config names no data set"):
        num_classes(make_cfg())
