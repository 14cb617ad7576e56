"""Videos and images in one training, through the stock trainer."""

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from systems import quick_cfg
from vis_d2.data import register_coco_images, register_ytvis_instances
from vis_d2.engine import VISTrainer

HEIGHT, WIDTH = 48, 64
CATEGORIES = [{"id": 1, "name": "disk"}, {"id": 2, "name": "square"}]
SQUARE = [[8, 8, 40, 8, 40, 40, 8, 40]]


@pytest.fixture
def joint(tmp_path: Path, monkeypatch: Any) -> Tuple[str, str]:
    """Two videos with squares, ids 1 and 2, and two images with plates and squares, 101 and 102."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    size = {"height": HEIGHT, "width": WIDTH}
    rng = np.random.default_rng(0)
    for name in [f"{video}_{t}.png" for video in (1, 2) for t in range(2)] + ["101.png", "102.png"]:
        pixels = rng.integers(40, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels[8:40, 8:40] = 220
        Image.fromarray(pixels).save(tmp_path / name)
    videos = [{"id": v, "file_names": [f"{v}_{t}.png" for t in range(2)], **size} for v in (1, 2)]
    tracks = [{"video_id": v, "category_id": 2, "segmentations": [SQUARE] * 2} for v in (1, 2)]
    content = {"categories": CATEGORIES, "videos": videos, "annotations": tracks}
    (tmp_path / "videos.json").write_text(json.dumps(content))
    images = [{"id": i, "file_name": f"{i}.png", **size} for i in (101, 102)]
    rows = [(101, 5), (102, 6), (102, 5)]
    objects = [{"id": i, "image_id": image, "category_id": c, "segmentation": SQUARE, "iscrowd": 0}
               for i, (image, c) in enumerate(rows, start=1)]  # fmt: skip
    names = [{"id": 5, "name": "plate"}, {"id": 6, "name": "square"}]
    content = {"categories": names, "images": images, "annotations": objects}
    (tmp_path / "images.json").write_text(json.dumps(content))
    register_ytvis_instances("joint_videos", str(tmp_path / "videos.json"), str(tmp_path))
    register_coco_images(
        "joint_images", str(tmp_path / "images.json"), str(tmp_path), target="joint_videos",
        category_map={"plate": "disk", "square": "square"},
    )  # fmt: skip
    return "joint_videos", "joint_images"


def test_a_system_trains_on_videos_and_images(joint: Tuple[str, str], tmp_path: Path) -> None:
    seen: List[Dict[str, Any]] = []

    class Watched(VISTrainer):
        @classmethod
        def build_train_loader(cls, cfg: Any, start_batch: int = 0) -> Iterator[List[Dict]]:
            for batch in super().build_train_loader(cfg, start_batch):
                seen.extend(batch)
                yield batch

    cfg = quick_cfg(
        "sg_net", "DATASETS.TRAIN", joint, "DATASETS.TEST", (), "DATASETS.TRAIN_RATIO", (1.0, 1.0),
        "MODEL.VIS.NUM_CLASSES", -1, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 2,
        "INPUT.MIN_SIZE_TRAIN", (64,), "TEST.EVAL_PERIOD", 0, "OUTPUT_DIR", str(tmp_path / "out"),
    )  # fmt: skip
    trainer = Watched(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.cfg.MODEL.VIS.NUM_CLASSES == 2
    kinds = [clip["video_id"] > 100 for clip in seen[:8]]
    assert set(kinds) == {True, False}
    assert all(len(clip["image"]) == 2 for clip in seen)
    classes = {(c["video_id"], tuple(c["instances"][0].gt_classes.tolist())) for c in seen}
    assert classes <= {(1, (1,)), (2, (1,)), (101, (0,)), (102, (1, 0))}
    metrics = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    losses = json.loads(metrics[-1])
    assert np.isfinite(losses["total_loss"])
    after = trainer.model.state_dict()
    assert any((before[key] != after[key]).any() for key in before)
