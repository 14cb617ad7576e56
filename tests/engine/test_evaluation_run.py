import json
import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from stand_in import make_cfg
from torch import nn

from vis_d2.engine.evaluation_run import evaluation_identity, run_evaluation


@pytest.fixture
def name(tmp_path, request):
    (tmp_path / "gt.json").write_text("{}")
    MetadataCatalog.get(request.node.name).json_file = str(tmp_path / "gt.json")
    yield request.node.name
    MetadataCatalog.remove(request.node.name)


def test_identity_knows_weights_config_and_data(tmp_path, name):
    cfg, model = make_cfg(tmp_path), nn.Linear(2, 2)
    first = evaluation_identity(cfg, model, name)
    assert first == evaluation_identity(make_cfg(tmp_path / "elsewhere"), model, name)
    assert first == evaluation_identity(make_cfg(tmp_path, "MODEL.WEIGHTS", "x.pth"), model, name)
    assert first != evaluation_identity(make_cfg(tmp_path, "INPUT.MIN_SIZE_TEST", 99), model, name)
    other = make_cfg(tmp_path, "TEST.VIS.MAX_TRACKS", 3)
    assert first != evaluation_identity(other, model, name)
    (tmp_path / "gt.json").write_text(json.dumps({"videos": []}))
    changed = evaluation_identity(cfg, model, name)
    assert changed != first
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert evaluation_identity(cfg, model, name) != changed


def test_an_evaluation_that_ends_early_says_how_to_go_on(caplog):
    def fails(inputs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.ERROR):
        run_evaluation(fails, [[{}]], DatasetEvaluators([]))
    assert "with --resume it goes on" in caplog.text
    assert run_evaluation(fails, [], DatasetEvaluators([])) == {}
