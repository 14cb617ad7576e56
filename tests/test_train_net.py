import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from vis_d2 import VISTrainer, add_vis_config
from vis_d2.data import register_ytvis_instances
from vis_d2.data.datasets.toy import write_toy
from vis_d2.engine import merge_config

ROOT = Path(__file__).resolve().parents[1]
QUICK_CONFIGS = sorted((ROOT / "configs" / "quick").glob("*.yaml"))
SETS = {"train": 3, "val": 2}


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[List[str]]:
    """A toy data set of a few videos, and the options that name it and keep everything small."""
    root = write_toy(tmp_path_factory.mktemp("data") / "toy", SETS)
    for split in SETS:
        folder = str(root / split / "JPEGImages")
        register_ytvis_instances(f"small_{split}", str(root / f"{split}.json"), folder)
    sizes = "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TRAIN_SAMPLING choice INPUT.MIN_SIZE_TEST 64"
    solver = "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 SEED 5"
    sets = "DATASETS.TRAIN ('small_train',) DATASETS.TEST ('small_val',) DATALOADER.NUM_WORKERS 0"
    yield f"{sizes} {solver} {sets} TEST.VIS.PREFETCH 0".split()
    for split in SETS:
        DatasetCatalog.remove(f"small_{split}")
        MetadataCatalog.remove(f"small_{split}")


@pytest.fixture(params=QUICK_CONFIGS, ids=lambda path: path.stem)
def config(request: Any) -> str:
    return str(request.param)


def train_net(*argv: str) -> Any:
    """Run the script's ``main`` on a command line, in this process."""
    module = runpy.run_path(str(ROOT / "train_net.py"))
    return module["main"](default_argument_parser().parse_args(list(argv)))


def save_untrained(config: str, folder: Path) -> str:
    """Weights as they are before a training."""
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, config, ["SEED", "5", "MODEL.DEVICE", "cpu", "MODEL.VIS.NUM_CLASSES", "5"])
    torch.manual_seed(5)
    path = str(folder / "untrained.pth")
    torch.save({"model": VISTrainer.build_model(cfg).state_dict()}, path)
    return path


def test_train_stop_resume_evaluate(
    config: str, small_sets: List[str], tmp_path: Path, monkeypatch: Any
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    argv = ["train_net.py", "--config-file", config, *small_sets, "OUTPUT_DIR", str(whole)]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
    for name in ("model_final.pth", "manifest.json", "training_curve.png", "config.yaml"):
        assert (whole / name).is_file(), name
    results = whole / "inference" / "small_val" / "results.json"
    assert isinstance(json.loads(results.read_text()), list)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert all(len(checksum) == 64 for checksum in manifest["data_sha256"].values())

    common = ["--config-file", config, *small_sets]
    halves.mkdir()
    shutil.copy(whole / "model_0000001.pth", halves)
    (halves / "last_checkpoint").write_text("model_0000001.pth")
    argv = [*common, "OUTPUT_DIR", str(halves), "DATASETS.TEST", "()"]
    train_net("--resume", *argv)
    one, two = (torch.load(f / "model_final.pth", weights_only=True) for f in (whole, halves))
    for key, value in one["model"].items():
        assert torch.equal(value, two["model"][key]), key

    weights = ["MODEL.WEIGHTS", str(whole / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "e")]
    answer = train_net("--eval-only", *common, *weights)
    again = train_net("--eval-only", "--resume", *common, "OUTPUT_DIR", str(whole))
    assert "AP" in answer["segm"] and str(answer) == str(again)


def test_an_evaluation_that_broke_goes_on(
    config: str, small_sets: List[str], tmp_path: Path
) -> None:
    """A frame that cannot be read ends it; mended, only the videos that were left are processed."""
    common = ["--config-file", config, "--eval-only", *small_sets]
    root = Path(MetadataCatalog.get("small_val").image_root)
    _, second = sorted(root.iterdir())
    frame = sorted(second.iterdir())[3]
    sound = frame.read_bytes()
    cfg = [*common, "MODEL.WEIGHTS", save_untrained(config, tmp_path), "OUTPUT_DIR"]
    wanted = train_net(*cfg, str(tmp_path / "whole"))
    frame.write_bytes(sound[:50])
    try:
        with pytest.raises(OSError, match=frame.name):
            train_net(*cfg, str(tmp_path / "broken"))
    finally:
        frame.write_bytes(sound)
    folders = [tmp_path / name / "inference" / "small_val" for name in ("whole", "broken")]
    assert [path.name for path in folders[1].iterdir()] == ["results.partial.0.jsonl"]
    answer = train_net("--resume", *cfg, str(tmp_path / "broken"))
    log = (tmp_path / "broken" / "log.txt").read_text()
    assert "small_val: 1 videos were finished before" in log
    assert str(answer) == str(wanted)
    one, two = (folder / "results.json" for folder in folders)
    assert one.read_bytes() == two.read_bytes() and not list(folders[1].glob("*.jsonl"))


def test_evaluation_needs_weights(config: str, small_sets: List[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--eval-only needs MODEL.WEIGHTS, or --resume"):
        train_net("--config-file", config, "--eval-only", *small_sets, "OUTPUT_DIR", str(tmp_path))


def test_a_misspelt_key_is_named(config: str) -> None:
    with pytest.raises(KeyError, match="SOLVER.BASE_RL.*did you mean SOLVER.BASE_LR"):
        train_net("--config-file", config, "SOLVER.BASE_RL", "1")


def test_weights_of_another_model_are_refused(
    config: str, small_sets: List[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "other.pth")
    torch.save({"model": {f"encoder.{i}": torch.zeros(3) for i in range(9)}}, path)
    opts = [*small_sets, "MODEL.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="checkpoint of another model: matched 0"):
        train_net("--config-file", config, *opts)
