"""The configs of MS-STS against the tables that they come from: parameters, rates, epochs, data."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from vis_d2 import add_vis_config
from vis_d2.data import category_maps
from vis_d2.data.frame_sampler import KeyAndFar, build_sampler
from vis_d2.data.pseudo_clip import PseudoClip
from vis_d2.engine.optimizer import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "MS-STS"
ABLATIONS = ROOT / "projects" / "MS-STS" / "configs"
FRAMES = {"2019": 61845, "2021": 90160}
IMAGES = 90000  # the configs' estimate


def read(path):
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


@lru_cache(maxsize=None)
def build(path):
    cfg = read(path)
    # The classes of the published models: ids 0 to 41. Sizes only: nothing is drawn.
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.VIS.NUM_CLASSES", 42])
    with torch.device("meta"):
        return build_model(cfg)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_baseline_are_the_published_ones():
    model = build(ABLATIONS / "baseline.yaml")
    assert count(model) == 48_404_173 and model.discriminator is None
    assert count(model.backbone) == 23_454_912
    detector = model.detector
    assert count(detector.input_proj) == 5_639_168
    assert count(detector.transformer.encoder) == 6 * 822_656
    assert count(detector.transformer.decoder) == 6 * 1_876_865
    assert count(detector.class_embed) == 64_764 and count(detector.bbox_embed) == 795_672
    assert count(model.masks.controller) == 175_017
    assert count(model.masks.mask_head) == 1_922_376


@pytest.mark.parametrize(
    "name, extra",
    [
        ("no_split", 6 * 263_680 + 2_891_008),
        ("no_temporal", 6 * 104_320 + 2_891_008),
        ("no_adv", 6 * 104_320 + 6 * 263_680),
    ],
)
def test_each_part_is_switched_off_alone(name, extra):
    assert count(build(ABLATIONS / f"{name}.yaml")) == 48_404_173 + extra


@pytest.mark.parametrize(
    "name, total",
    [
        ("R_50", 48_404_173),
        ("R_101", 67_344_077),
        # The published count has the normalisation of the map of stride 4, which nothing uses.
        ("swin_L", 218_741_441 - 2 * 192),
    ],
)
def test_parameters_of_all_backbones(name, total):
    model = build(CONFIGS / f"ms_sts_{name}_ytvis2019_joint.yaml")
    assert count(model) - count(model.discriminator) == total + 6 * 104_320 + 6 * 263_680
    frozen = {n for n, p in model.backbone.named_parameters() if not p.requires_grad}
    expected = () if name == "swin_L" else ("stem.", "res2.")
    assert frozen == {
        n for n, _ in model.backbone.named_parameters() if expected and n.startswith(expected)
    }


def test_swin_is_the_published_one():
    cfg = read(CONFIGS / "ms_sts_swin_L_ytvis2019.yaml")
    backbone = build(CONFIGS / "ms_sts_swin_L_ytvis2019.yaml").backbone
    blocks = [list(backbone.body.get_submodule(f"layers_{s}.blocks")) for s in range(4)]
    assert [len(stage) for stage in blocks] == [2, 2, 18, 2]
    assert [stage[0].attn.num_heads for stage in blocks] == [6, 12, 24, 48]
    for stage in blocks:
        assert {block.window_size for block in stage} == {(12, 12)}
        # Every other block, also in the last stage, whose map a classifier sees in one window.
        assert [block.shift_size for block in stage[:2]] == [(0, 0), (6, 6)]
    drops = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(drops) == pytest.approx(0.3) == cfg.MODEL.TIMM.DROP_PATH
    assert list(backbone.out_norms) == ["res3", "res4", "res5"]


@pytest.mark.parametrize("name", ["R_50_ytvis2019", "R_101_ytvis2021_joint", "swin_L_coco"])
def test_rates_of_the_parameter_groups(name):
    path = CONFIGS / f"ms_sts_{name}.yaml"
    model = build(path)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    slow, judge = set(), set()
    for group in build_optimizer(read(path), model).param_groups:
        keys = {names[id(parameter)] for parameter in group["params"]}
        assert group["weight_decay"] == 1e-4
        if group["lr"] == pytest.approx(2e-5):
            slow |= keys
        elif group["lr"] == pytest.approx(1e-4):
            judge |= keys
            assert group["betas"] == (0.5, 0.999) and group["clip"] == 0.1
        else:
            assert group["lr"] == pytest.approx(2e-4) and group["betas"] == (0.9, 0.999)
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    backbone = {key for key in learning if key.startswith("backbone.")}
    offsets = {key for key in learning if "sampling_offsets" in key or "reference_points" in key}
    assert slow == backbone | offsets and len(offsets) == 2 * (6 + 6) + 2
    assert judge == {key for key in learning if key.startswith("discriminator.")}
    assert bool(judge) == ("coco" not in name)


@pytest.mark.parametrize("backbone", ["R_50", "R_101", "swin_L"])
@pytest.mark.parametrize("year", FRAMES)
@pytest.mark.parametrize("joint", [False, True])
def test_iterations_are_twelve_epochs_of_batches_of_sixteen(backbone, year, joint):
    end = "_joint" if joint else ""
    cfg = read(CONFIGS / f"ms_sts_{backbone}_ytvis{year}{end}.yaml")
    images = IMAGES if joint else 0
    epoch = (FRAMES[year] + images) / cfg.SOLVER.IMS_PER_BATCH
    drops = (4, 10) if joint else (2, 10)
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.SOLVER.MAX_ITER == pytest.approx(12 * epoch, abs=1)
    assert cfg.SOLVER.STEPS == pytest.approx([n * epoch for n in drops], abs=1)
    sets = (f"ytvis_{year}_train", f"coco_2017_train_as_ytvis_{year}")
    assert cfg.DATASETS.TRAIN == (sets if joint else sets[:1])
    assert cfg.DATASETS.TEST == (f"ytvis_{year}_val",)
    assert cfg.DATASETS.TRAIN_RATIO == ((FRAMES[year], images) if joint else ())
    assert cfg.MODEL.WEIGHTS == f"output/ms_sts_{backbone}_coco/start_ytvis{year}.pth"
    assert cfg.OUTPUT_DIR == f"output/ms_sts_{backbone}_ytvis{year}{end}"


@pytest.mark.parametrize("backbone", ["R_50", "R_101", "swin_L"])
def test_pretraining_has_whole_images_and_all_classes(backbone):
    cfg = read(CONFIGS / f"ms_sts_{backbone}_coco.yaml")
    epoch = 117266 / 16
    assert cfg.SOLVER.MAX_ITER == pytest.approx(50 * epoch, abs=1)
    assert cfg.SOLVER.STEPS == pytest.approx([40 * epoch], abs=1)
    assert build_sampler(cfg)(1, np.random.default_rng(0)) == [0]
    image = np.arange(300 * 400 * 3, dtype=np.uint8).reshape(300, 400, 3)
    draw = PseudoClip(cfg).draw(image, 1, np.random.default_rng(0))
    assert draw.copies[0].matrix is None and draw.copies[0].kernel is None
    assert len(category_maps.COCO) == 80 and cfg.DATASETS.TRAIN == ("coco_2017_train_as_coco",)


def test_clips_of_videos_and_images():
    cfg = read(CONFIGS / "ms_sts_R_50_ytvis2019_joint.yaml")
    sampler = build_sampler(cfg)
    assert type(sampler) is KeyAndFar and (sampler.num_frames, sampler.max_distance) == (5, 3)
    image = np.zeros((240, 320, 3), np.uint8)
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(40):
        draw = PseudoClip(cfg).draw(image, 5, rng)
        assert sum(copy.matrix is None for copy in draw.copies) == 1  # the image as it is
        assert all(abs(copy.brightness) <= 40 and abs(copy.hue) <= 5 for copy in draw.copies)
        sizes.add(tuple(draw.image(image, 0).shape[1:]))
    short = {288, 320, 352, 392, 416, 448, 480, 512}
    whole = {min(size) for size in sizes}
    assert max(max(size) for size in sizes) <= 768 and len(whole & short) >= 6
    shapes = {round(max(size) / min(size), 2) for size in sizes}
    assert 1.33 in shapes and len(shapes) > 8  # half of the clips are crops
    assert draw.exclusive and cfg.INPUT.PSEUDO_CLIP.MAX_OBJECTS == 25
