from typing import Any, Dict, List

import pytest
import torch
from stand_in import make_cfg
from torch import nn

from vis_d2.engine.optimizer import build_optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.shared = self.head


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> Dict[str, Dict[str, Any]]:
    """Name of each parameter -> its group's settings; fails if a parameter has two groups."""
    names = {p: name for name, p in model.named_parameters()}
    found: Dict[str, Dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert names[p] not in found
            found[names[p]] = group
    return found


def build(rows: List[Dict[str, Any]] = (), *opts: Any, model: nn.Module = None) -> Any:
    model = model or Net()
    cfg = make_cfg("unused", "SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.01, *opts)
    cfg.SOLVER.PARAM_GROUPS = list(rows)
    return build_optimizer(cfg, model), model


def test_norms_and_biases_follow_the_rules_of_detectron2() -> None:
    opts = ("SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BIAS_LR_FACTOR", 2.0)
    optimizer, model = build((), *opts, "SOLVER.WEIGHT_DECAY_BIAS", 0.5)
    found = settings(optimizer, model)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    values = {name: (group["lr"], group["weight_decay"]) for name, group in found.items()}
    assert values["backbone.0.weight"] == values["head.weight"] == (0.1, 0.01)
    assert values["backbone.1.weight"] == (0.1, 0.0)
    assert values["backbone.1.bias"] == values["head.bias"] == (0.2, 0.5)
    assert len(optimizer.param_groups) == 3  # equal settings share a group


def test_rows_of_the_table_change_rate_decay_and_betas_and_the_first_one_wins() -> None:
    rows = [
        {"match": r"backbone\.1", "weight_decay": 0.7},
        {"match": "^backbone", "lr": 0.1, "betas": [0.5, 0.999]},
    ]
    optimizer, model = build(rows, "SOLVER.OPTIMIZER", "AdamW")
    found = settings(optimizer, model)
    assert found["backbone.0.weight"]["lr"] == pytest.approx(0.01)
    assert found["backbone.0.weight"]["betas"] == (0.5, 0.999)
    assert found["head.weight"]["betas"] == (0.9, 0.999)
    assert found["backbone.1.weight"]["lr"] == 0.1
    assert found["backbone.1.weight"]["weight_decay"] == 0.7
    assert found["backbone.1.bias"]["weight_decay"] == 0.7


@pytest.mark.parametrize(
    "row, message",
    [
        ({"match": "bckbone"}, "no parameter matches 'bckbone'"),
        ({"match": "backbone", "learning_rate": 1.0}, "learning_rate"),
        ({"lr": 0.1}, "needs 'match'"),
        ({"match": "head", "betas": [0.5, 0.9]}, "SGD has no betas"),
    ],
)
def test_a_row_that_cannot_be_meant_is_an_error(row: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build([row])


def test_unknown_optimizer_and_clip_type_are_errors() -> None:
    with pytest.raises(ValueError, match="'Adagrad'"):
        build((), "SOLVER.OPTIMIZER", "Adagrad")
    with pytest.raises(ValueError, match="CLIP_TYPE.*'max'"):
        clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "max")
        build((), *clip)


def gradient_norms(rows: List[Dict[str, Any]], *opts: Any) -> Dict[str, float]:
    """Gradients of norm 2 per element go in; norms per part of the model after a step come out."""
    optimizer, model = build(rows, *opts)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    norms = {
        part: torch.cat([p.grad.flatten() for p in getattr(model, part).parameters()]).norm().item()
        for part in ("backbone", "head")
    }
    norms["all"] = torch.cat([p.grad.flatten() for p in trainable]).norm().item()
    norms["head.bias"] = model.head.bias.grad.norm().item()
    return norms


def enabled(kind: str, value: float) -> List[Any]:
    prefix = "SOLVER.CLIP_GRADIENTS."
    return [prefix + "ENABLED", True, prefix + "CLIP_TYPE", kind, prefix + "CLIP_VALUE", value]


def test_without_clipping_gradients_stay() -> None:
    assert gradient_norms([])["head.bias"] == pytest.approx(2.0 * 2**0.5)


def test_full_model_clipping_bounds_the_norm_of_all() -> None:
    norms = gradient_norms([], *enabled("full_model", 0.5))
    assert norms["all"] == pytest.approx(0.5, rel=1e-4)
    assert norms["head.bias"] < 0.5


def test_norm_and_value_clipping_bound_each_parameter() -> None:
    assert gradient_norms([], *enabled("norm", 0.5))["head.bias"] == pytest.approx(0.5, rel=1e-4)
    norm = gradient_norms([], *enabled("value", 0.5))["head.bias"]
    assert norm == pytest.approx(0.5 * 2**0.5)


def test_a_row_clips_its_parameters_together_and_the_rest_is_clipped_as_configured() -> None:
    # The row's parameters are in several groups, because norms and biases have other settings.
    rows = [{"match": "backbone", "clip": 0.25}]
    opts = ("SOLVER.WEIGHT_DECAY_NORM", 0.0)
    norms = gradient_norms(rows, *opts)
    assert norms["backbone"] == pytest.approx(0.25, rel=1e-4)
    assert norms["head.bias"] == pytest.approx(2.0 * 2**0.5)
    norms = gradient_norms(rows, *opts, *enabled("full_model", 1.0))
    assert norms["backbone"] == pytest.approx(0.25, rel=1e-4)
    assert norms["head"] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_equal_those_of_torch(fused: bool) -> None:
    for name, reference in (("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)):
        model, twin = Net(), Net()
        twin.load_state_dict(model.state_dict())
        opts = ("SOLVER.WEIGHT_DECAY_NORM", 0.01, "SOLVER.WEIGHT_DECAY_BIAS", 0.01)
        opts += ("SOLVER.FUSED", fused)
        ours, _ = build((), "SOLVER.OPTIMIZER", name, *opts, model=model)
        extra = {"momentum": 0.9} if name == "SGD" else {}
        assert ours.defaults["fused"] == (fused or None)
        theirs = reference(twin.parameters(), lr=0.1, weight_decay=0.01, **extra)
        for _ in range(2):
            for net, optimizer in ((model, ours), (twin, theirs)):
                optimizer.zero_grad()
                net.head(net.backbone(torch.ones(1, 3, 1, 1)).flatten(1)).sum().backward()
                optimizer.step()
        for a, b in zip(model.parameters(), twin.parameters()):
            torch.testing.assert_close(a, b)
