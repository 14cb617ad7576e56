"""Every config file loads, every key is read by some code, and nothing global changes."""

import re
from pathlib import Path
from typing import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import vis_d2
from systems import META_ARCHS, ROOT, quick_cfg

FILES = sorted((ROOT / "configs").rglob("*.yaml")) + sorted((ROOT / "projects").rglob("*.yaml"))


def full_cfg() -> CfgNode:
    cfg = get_cfg()
    vis_d2.add_vis_config(cfg)
    return cfg


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_there_are_configs():
    names = {path.name for path in FILES}
    assert {f"{system}.yaml" for system in META_ARCHS} <= names
    assert {"Base-VIS.yaml", "sg_net_R_50_FPN_ytvis2019.yaml"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_file_loads(path: Path):
    cfg = full_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.VERSION == 2


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_leaf_differs_from_its_parent(path: Path):
    base = re.search(r'^_BASE_: "?([^"\n]+)"?', path.read_text(), re.M)
    if base is None:
        return
    cfg, parent = full_cfg(), full_cfg()
    cfg.merge_from_file(str(path))
    parent.merge_from_file(str(path.parent / base.group(1)))
    assert cfg != parent


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_at_most_three_hops(path: Path):
    hops = 0
    while True:
        base = re.search(r'^_BASE_: "?([^"\n]+)"?', path.read_text(), re.M)
        if base is None:
            break
        path, hops = path.parent / base.group(1), hops + 1
    assert hops <= 3 and path.name == "Base-VIS.yaml"


@pytest.mark.parametrize(
    "path", [f for f in FILES if f.name != "Base-VIS.yaml"], ids=lambda p: p.name
)
def test_every_model_builds(path: Path):
    cfg = full_cfg()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.VIS.NUM_CLASSES", 40])
    with torch.device("meta"):  # sizes only: nothing is drawn
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert cfg.TEST.VIS.STRIDE <= cfg.TEST.VIS.WINDOW


@pytest.mark.parametrize("system", META_ARCHS)
def test_every_quick_model_builds(system):
    model = build_model(quick_cfg(system))
    assert sum(p.numel() for p in model.parameters()) > 0


def test_every_key_is_read_by_some_code():
    ours = set(leaves(full_cfg())) - set(leaves(get_cfg()))
    code = "".join(
        path.read_text()
        for path in (ROOT / "vis_d2").rglob("*.py")
        if path.name != "config.py" or path.parent.name == "modeling"
    )
    unread = [key for key in ours if not re.search(rf"\.{key.split('.')[-1]}\b", code)]
    assert not unread


def test_detectron2s_own_defaults_stay_untouched():
    before = get_cfg()
    full_cfg()
    assert get_cfg() == before
    assert "VIS" not in get_cfg().MODEL
