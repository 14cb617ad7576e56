"""detectron2's COCO evaluator runs without its compiled extension."""

import json
from pathlib import Path

import pytest
import torch
from detectron2 import _C
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

NAME = "__ground_coco"


@pytest.fixture
def dataset(tmp_path: Path):
    """One 40 x 60 image with two objects of two classes, registered under ``NAME``."""
    objects = [(1, [4, 4, 20, 24]), (2, [30, 10, 24, 20])]
    annotations = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, (c, b) in enumerate(objects, 1)
    ]
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(tmp_path / "coco.json"), str(tmp_path))
    DatasetCatalog.get(NAME)  # fills in the metadata
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(classes: list, **options: bool) -> dict:
    evaluator = COCOEvaluator(NAME, tasks=("bbox",), distributed=False, **options)
    found = Instances(
        (40, 60),
        pred_boxes=Boxes(torch.tensor([[4.0, 4.0, 24.0, 28.0], [30.0, 10.0, 54.0, 30.0]])),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor(classes),
    )
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_coco_evaluator_scores_right_and_wrong(dataset: None) -> None:
    right = evaluate([0, 1], use_fast_impl=False)
    assert right["AP"] == pytest.approx(100.0) and right["AP-left"] == pytest.approx(100.0)
    swapped = evaluate([1, 0], use_fast_impl=False)
    assert swapped["AP"] == pytest.approx(0.0)


@pytest.mark.skipif(not hasattr(_C, "DEFORM_CONV_ON_CPU"), reason="a compiled detectron2")
def test_the_compiled_evaluator_says_what_to_use_instead(dataset: None) -> None:
    with pytest.raises(NotImplementedError, match="use_fast_impl=False"):
        evaluate([0, 1], use_fast_impl=True)
