import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from stand_in import make_cfg

from vis_d2.engine import build_checkpointer, prepare_config


def make(save_dir: Path, *opts: Any) -> Any:
    cfg: CfgNode = make_cfg(save_dir, *opts)
    prepare_config(cfg)
    model = build_model(cfg)
    return build_checkpointer(cfg, model, str(save_dir)), model


def saved(tmp_path: Path) -> Any:
    checkpointer, model = make(tmp_path)
    checkpointer.save("w", iteration=3)
    return str(tmp_path / "w.pth"), model


def test_round_trip_with_a_report(tmp_path: Path, caplog: Any) -> None:
    path, model = saved(tmp_path)
    checkpointer, other = make(tmp_path)
    with caplog.at_level("INFO", logger="vis_d2"):
        extra = checkpointer.load(path)
    assert "matched 6 of the model's 6 tensors and of the file's 6" in caplog.text
    assert extra["iteration"] == 3
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_other_classes_are_an_error_that_prints_both(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    checkpointer, _ = make(tmp_path)
    checkpointer.identity["thing_classes"] = ["bright", "grey"]
    with pytest.raises(ValueError, match=r"2 \(bright, dark\) in the .* 2 \(bright, grey\) here"):
        checkpointer.load(path)
    checkpointer, _ = make(tmp_path, "MODEL.VIS.NUM_CLASSES", 5)
    with pytest.raises(ValueError, match=r"2 \(bright, dark\) in the checkpoint, 5 "):
        checkpointer.load(path)


def test_unknown_names_compare_by_number_only(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    checkpointer, _ = make(tmp_path)
    checkpointer.identity["thing_classes"] = []
    checkpointer.load(path)


def test_another_meta_architecture_is_an_error_that_prints_both(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    checkpointer, _ = make(tmp_path)
    checkpointer.identity["meta_architecture"] = "Other"
    with pytest.raises(ValueError, match="another model: StandIn, but the config builds Other"):
        checkpointer.load(path)


def test_weights_that_hardly_match_are_refused_and_a_backbone_is_not(tmp_path: Path) -> None:
    checkpointer, model = make(tmp_path)
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.0")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    checkpointer.load(str(tmp_path / "backbone.pth"))
    other = {f"encoder.{i}": torch.zeros(2) for i in range(5)}
    torch.save({**other, **backbone}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="another model: matched 2 of the model's 6"):
        checkpointer.load(str(tmp_path / "other.pth"))


def test_damaged_files_and_other_things_are_one_error_that_names_the_file(tmp_path: Path) -> None:
    path = Path(saved(tmp_path)[0])
    files = {
        "half.pth": path.read_bytes()[: path.stat().st_size // 2],
        "empty.pth": b"",
        "page.pth": b"<html>404</html>",
        "noextension": b"PK",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be read as a checkpoint") as error:
            make(tmp_path)[0].load(str(tmp_path / name))
        assert "\n" not in str(error.value)
    contents = {
        "expected a checkpoint with a dict, found a list": [torch.zeros(2)],
        "'state_dict' is of type dict": {"state_dict": {"a": torch.zeros(2)}},
        "'model' is of type Tensor": {"model": torch.zeros(2)},
        "another model: matched 0 of": {},
    }
    for message, content in contents.items():
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=f"odd.pth: .*{message}"):
            make(tmp_path)[0].load(str(tmp_path / "odd.pth"))
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(AssertionError, match="folder.pth not found"):
        make(tmp_path)[0].load(str(tmp_path / "folder.pth"))


def test_skipped_shapes_are_reported(tmp_path: Path, caplog: Any) -> None:
    checkpointer, model = make(tmp_path)
    state = {**model.state_dict(), "predictor.bias": torch.zeros(7)}
    torch.save({"model": state}, tmp_path / "w.pth")
    with caplog.at_level("INFO", logger="vis_d2"):
        checkpointer.load(str(tmp_path / "w.pth"))
    assert "matched 5 of" in caplog.text and "predictor.bias [7] -> [2]" in caplog.text


def test_pickles_need_the_config_key(tmp_path: Path) -> None:
    checkpointer, model = make(tmp_path)
    path = tmp_path / "w.pkl"
    state = {k: np.ones_like(v.numpy()) for k, v in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    with pytest.raises(ValueError, match="w.pkl: this is a pickle.*MODEL.VIS.ALLOW_PICKLE True"):
        checkpointer.load(str(path))
    checkpointer, model = make(tmp_path, "MODEL.VIS.ALLOW_PICKLE", True)
    checkpointer.load(str(path))
    assert model.predictor.bias.tolist() == [1.0, 1.0]


def test_code_in_a_pth_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth: cannot be read.* Python object _?io\.open"):
        make(tmp_path)[0].load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_stock_checkpointer_reads_our_files(tmp_path: Path) -> None:
    path, model = saved(tmp_path)
    _, other = make(tmp_path)
    DetectionCheckpointer(other).load(path)
    assert torch.equal(model.predictor.weight, other.predictor.weight)
