from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from stand_in import CLASSES, make_cfg

from vis_d2.data import register_ytvis_instances
from vis_d2.engine.setup import class_names, merge_config, prepare_config


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_file_and_command_line_are_merged_in_this_order(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    file = write(tmp_path / "a.yaml", "SOLVER:\n  BASE_LR: 0.5\n  ACCUMULATE: 3\n")
    merge_config(cfg, file, ["SOLVER.ACCUMULATE", "4"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.ACCUMULATE) == (0.5, 4)


@pytest.mark.parametrize(
    "key, nearest",
    [("SOLVER.ACUMULATE", "SOLVER.ACCUMULATE"), ("MODEL.NUM_CLASSES", "MODEL.VIS.NUM_CLASSES")],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tmp_path: Path, key: str, nearest: str
) -> None:
    with pytest.raises(KeyError, match=f"{key} in the command line; did you mean .*{nearest}"):
        merge_config(make_cfg(tmp_path), "", [key, "1"])
    parts = key.split(".")
    text = "".join(
        "  " * i + f"{part}:" + "\n" * (i < len(parts) - 1) for i, part in enumerate(parts)
    )
    file = write(tmp_path / "typo.yaml", text + " 1\n")
    with pytest.raises(KeyError, match=f"{key} in {file}; did you mean .*{nearest}"):
        merge_config(make_cfg(tmp_path), file)


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="TRAINER.EPOCHS|TRAINER"):
        merge_config(make_cfg(tmp_path), "", ["TRAINER.EPOCHS", "1"])


def test_a_value_of_another_type_is_named_with_key_and_file(tmp_path: Path) -> None:
    file = write(tmp_path / "types.yaml", "SOLVER:\n  MAX_ITER: many\n")
    with pytest.raises(ValueError, match=r"SOLVER.MAX_ITER in .*types.yaml'?: expected int like 6"):
        merge_config(make_cfg(tmp_path, "SOLVER.MAX_ITER", 6), file)
    message = "SOLVER.MAX_ITER in the command line: expected int like 6, got str many"
    with pytest.raises(ValueError, match=message):
        merge_config(make_cfg(tmp_path, "SOLVER.MAX_ITER", 6), "", ["SOLVER.MAX_ITER", "many"])
    file = write(tmp_path / "section.yaml", "MODEL: 3\n")
    with pytest.raises(ValueError, match=r"MODEL in .*section.yaml'?: expected keys below it") as e:
        merge_config(make_cfg(tmp_path), file)
    assert len(str(e.value)) < 300
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: types.yaml\n")
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER in .*leaf.yaml"):
        merge_config(make_cfg(tmp_path), leaf)


def test_a_missing_file_and_a_lone_key_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        merge_config(make_cfg(tmp_path), "nowhere.yaml")
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE at the end has no value"):
        merge_config(make_cfg(tmp_path), "", ["SEED", "1", "SOLVER.ACCUMULATE"])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"MODEL: [1,\n", r"a\.yaml' is not plain YAML: .*line 2, column 1"),
        (b"just words\n", r"a\.yaml' holds a str, expected keys"),
        (b"", r"a\.yaml' holds a NoneType"),
        (b"OUTPUT_DIR: \xe9\xff\n", r"a\.yaml' is not plain YAML"),
        (b"_BASE_: b.yaml\n", r"b\.yaml' is not plain YAML|b\.yaml.*line 1"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    (tmp_path / "b.yaml").write_text("SEED: ]\n")
    with pytest.raises(ValueError, match=message) as error:
        merge_config(make_cfg(tmp_path), str(tmp_path / "a.yaml"))
    assert "\n" not in str(error.value)


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    tag = "!!python/object/apply:os.mkdir"
    file = write(tmp_path / "evil.yaml", f"OUTPUT_DIR: {tag} [{tmp_path / 'ran'}]\n")
    with pytest.raises(Exception, match="python/object"):
        merge_config(make_cfg(tmp_path), file)
    assert not (tmp_path / "ran").exists()


def test_device_seed_and_classes_are_settled(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = make_cfg(tmp_path, "MODEL.DEVICE", "cuda", "SEED", -1)
    with caplog.at_level("INFO", logger="vis_d2"):
        prepare_config(cfg)
    assert cfg.MODEL.DEVICE == "cpu" and "no GPU" in caplog.text
    assert cfg.SEED >= 0
    assert cfg.MODEL.VIS.NUM_CLASSES == len(CLASSES)
    settled = cfg.dump()
    prepare_config(cfg)
    assert cfg.dump() == settled


def test_a_device_that_is_not_there_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'gpu', expected cpu, cuda"):
        prepare_config(make_cfg(tmp_path, "MODEL.DEVICE", "gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    prepare_config(make_cfg(tmp_path, "MODEL.DEVICE", "cuda:1"))
    with pytest.raises(ValueError, match="'cuda:2', but this machine has 2 GPUs"):
        prepare_config(make_cfg(tmp_path, "MODEL.DEVICE", "cuda:2"))


def test_a_data_set_that_does_not_exist_is_named_with_the_nearest(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    cfg.DATASETS.TRAIN = ("ytvis_2019_trian",)
    with pytest.raises(KeyError, match="'ytvis_2019_trian'; did you mean ytvis_2019_train or"):
        prepare_config(cfg)


def test_a_given_number_of_classes_stays(tmp_path: Path, caplog: Any) -> None:
    cfg = make_cfg(tmp_path, "MODEL.VIS.NUM_CLASSES", 9)
    prepare_config(cfg)
    assert cfg.MODEL.VIS.NUM_CLASSES == 9
    assert "NUM_CLASSES is 9, but the data set has 2" in caplog.text


def without_data(tmp_path: Path, *opts: Any) -> CfgNode:
    cfg = make_cfg(tmp_path, *opts)
    cfg.DATASETS.TRAIN = ("stand_in_elsewhere",)
    return cfg


def test_classes_of_missing_data_come_from_the_checkpoint(tmp_path: Path) -> None:
    if "stand_in_elsewhere" not in MetadataCatalog.list():
        register_ytvis_instances("stand_in_elsewhere", "nowhere.json", "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        prepare_config(without_data(tmp_path))
    path = str(tmp_path / "w.pth")
    torch.save({"model": {}, "vis_d2": {"thing_classes": ["a", "b", "c"]}}, path)
    cfg = without_data(tmp_path, "MODEL.WEIGHTS", path)
    prepare_config(cfg)
    assert cfg.MODEL.VIS.NUM_CLASSES == 3
    assert class_names(without_data(tmp_path, "MODEL.VIS.NUM_CLASSES", 4)) == []
    Path(path).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=f"{path}: cannot be read as a checkpoint"):
        prepare_config(without_data(tmp_path, "MODEL.WEIGHTS", path))


def test_no_data_set_and_no_number_of_classes_is_an_error(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="NUM_CLASSES is -1 and neither"):
        prepare_config(cfg)
