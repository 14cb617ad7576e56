import pickle
from pathlib import Path
from typing import Dict

import numpy as np
import pytest
import torch
from torch import Tensor

from vis_d2.checkpoint import convert_checkpoint, match_state, read_state, rename_keys


def model_state() -> Dict[str, Tensor]:
    return {
        "backbone.conv.weight": torch.zeros(4, 3),
        "head.cls.weight": torch.full((2, 3), -1.0),
        "head.cls.bias": torch.full((2,), -1.0),
        "head.box.weight": torch.zeros(4, 3),
    }


def test_rules_rename_drop_and_keep() -> None:
    state = {"a.0.w": torch.tensor(0), "a.1.w": torch.tensor(1), "junk.x": torch.tensor(2)}
    state["same"] = torch.tensor(3)
    renamed = rename_keys(state, [(r"a\.(\d)\.(.*)", r"tower.\1.\2"), (r"junk\..*", None)])
    assert {k: int(v) for k, v in renamed.items()} == {"tower.0.w": 0, "tower.1.w": 1, "same": 3}


def test_the_first_fitting_rule_decides_and_patterns_fit_whole_keys() -> None:
    rules = [("a", "first"), ("a.*", "second"), ("b", "third")]
    state = {"a": torch.tensor(0), "ab": torch.tensor(1), "bb": torch.tensor(2)}
    assert set(rename_keys(state, rules)) == {"first", "second", "bb"}


def test_two_keys_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="a and b would both become c"):
        rename_keys({"a": torch.zeros(1), "b": torch.zeros(1)}, [("a|b", "c")])


def test_report_names_every_fate() -> None:
    state = model_state()
    del state["head.box.weight"]
    state["head.cls.bias"] = torch.zeros(80)
    state["extra"] = torch.zeros(1)
    usable, report = match_state(state, model_state())
    assert set(usable) == {"backbone.conv.weight", "head.cls.weight"} == set(report.matched)
    assert report.skipped == [("head.cls.bias", (80,), (2,))]
    assert report.missing == ["head.box.weight"] and report.unexpected == ["extra"]
    assert "matched 2 of the model's 4 and of the file's 4" in str(report)
    assert "head.cls.bias [80] -> [2]" in str(report)


def test_conversion_remaps_class_rows_and_keeps_the_initial_values_of_new_classes(
    tmp_path: Path,
) -> None:
    source = {
        "module.net.conv.weight": torch.ones(4, 3),
        "module.net.cls.weight": torch.arange(15.0).reshape(5, 3),
        "module.net.cls.bias": torch.arange(5.0),
        "module.net.box.weight": torch.ones(4, 3),
    }
    torch.save({"state_dict": source}, tmp_path / "theirs.pth")
    rules = [(r"net\.conv\.(.*)", r"backbone.conv.\1"), (r"net\.(.*)", r"head.\1")]
    report = convert_checkpoint(
        str(tmp_path / "theirs.pth"),
        str(tmp_path / "ours.pth"),
        model_state(),
        rules=rules,
        class_keys=r"head\.cls\..*",
        class_rows={1: 3},
    )
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert len(report.matched) == 4
    assert ours["head.cls.bias"].tolist() == [-1.0, 3.0]
    assert ours["head.cls.weight"].tolist() == [[-1.0] * 3, [9.0, 10.0, 11.0]]
    assert ours["backbone.conv.weight"].eq(1).all()


def test_class_rows_that_do_not_exist_are_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    torch.save(model_state(), path)
    with pytest.raises(ValueError, match="head.cls.weight: class rows 0 <- 7 .* the file 2"):
        convert_checkpoint(path, path, model_state(), class_keys=r"head\.cls.*", class_rows={0: 7})


def test_a_number_fits_with_and_without_an_axis() -> None:
    usable, report = match_state({"scale": torch.tensor([3.0])}, {"scale": torch.tensor(1.0)})
    assert usable["scale"].shape == () and float(usable["scale"]) == 3
    assert report.matched == ["scale"] and not report.skipped


def test_a_new_file_holds_what_else_it_is_given(tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    torch.save(model_state(), path)
    convert_checkpoint(path, path, model_state(), extra={"vis_d2": {"num_classes": 2}})
    ours = torch.load(path, weights_only=True)
    assert ours["vis_d2"] == {"num_classes": 2} and set(ours["model"]) == set(model_state())


def test_weights_of_another_model_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    other = {f"other.{i}": torch.zeros(1) for i in range(4)}
    other["backbone.conv.weight"] = torch.zeros(4, 3)
    torch.save({"model": other}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="another model: matched 1 of the model's 4"):
        convert_checkpoint(str(tmp_path / "other.pth"), str(tmp_path / "out.pth"), model_state())
    assert not (tmp_path / "out.pth").exists()


def test_a_backbone_alone_is_no_other_model() -> None:
    _, report = match_state({"backbone.conv.weight": torch.zeros(4, 3)}, model_state())
    report.check()
    _, report = match_state({}, model_state())
    with pytest.raises(ValueError, match="another model"):
        report.check()


def test_pickles_need_permission(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pkl")
    with open(path, "wb") as f:
        pickle.dump({"w": np.ones(2, dtype=np.float32)}, f)
    with pytest.raises(ValueError, match="weights.pkl is a pickle.*allow_pickle=True"):
        read_state(path)
    assert torch.equal(read_state(path, allow_pickle=True)["w"], torch.ones(2))


def test_code_in_a_pth_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        read_state(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_tensors_can_be_fitted_before_class_rows_are_moved(tmp_path: Path) -> None:
    source = {**model_state(), "head.cls.weight": torch.ones(3, 3, 1)}
    source["head.cls.bias"] = torch.arange(3.0)
    torch.save(source, tmp_path / "in.pth")
    report = convert_checkpoint(
        str(tmp_path / "in.pth"),
        str(tmp_path / "out.pth"),
        model_state(),
        adapt=lambda state: {k: v.squeeze(-1) if v.dim() == 3 else v for k, v in state.items()},
        class_keys=r"head\.cls\..*",
        class_rows={1: 2},
    )
    new = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert len(report.matched) == 4
    assert new["head.cls.weight"].tolist() == [[-1.0] * 3, [1.0] * 3]
    assert new["head.cls.bias"].tolist() == [-1.0, 2.0]


def test_an_error_names_some_keys_and_a_report_all(tmp_path: Path) -> None:
    state = {f"theirs.{i}": torch.zeros(1) for i in range(20)}
    _, report = match_state(state, {f"ours.{i}": torch.zeros(1) for i in range(20)})
    with pytest.raises(ValueError, match="theirs.7, … and 12 more") as error:
        report.check()
    assert "ours.19" in str(report) and "ours.19" not in str(error.value)
