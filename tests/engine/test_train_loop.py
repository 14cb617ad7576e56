import math
from typing import Any, Dict, List, Tuple

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from stand_in import make_cfg, make_clip

from vis_d2.engine.optimizer import build_optimizer
from vis_d2.engine.setup import prepare_config
from vis_d2.engine.train_loop import ClipTrainLoop


def make_loop(batches: List[Any], **kwargs: Any) -> Tuple[ClipTrainLoop, torch.nn.Module]:
    cfg = make_cfg("unused")
    prepare_config(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.dropout.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ClipTrainLoop(model, batches, optimizer, **kwargs), model


def step(loop: ClipTrainLoop) -> Dict[str, float]:
    with EventStorage(0) as storage:
        loop.run_step()
        latest = storage.latest()
    return {k: v[0] if isinstance(v, tuple) else v for k, v in latest.items()}


def test_accumulated_batches_equal_one_large_batch() -> None:
    clips = [make_clip(i) for i in range(4)]
    large, large_model = make_loop([clips])
    small, small_model = make_loop([clips[:2], clips[2:]], accumulate=2)
    large_metrics, small_metrics = step(large), step(small)
    assert small_metrics["total_loss"] == pytest.approx(large_metrics["total_loss"], rel=1e-6)
    for a, b in zip(large_model.parameters(), small_model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_every_loss_and_their_sum_are_recorded() -> None:
    metrics = step(make_loop([[make_clip(0)]])[0])
    parts = metrics["loss_object"] + metrics["loss_area"]
    assert metrics["total_loss"] == pytest.approx(parts)


def test_a_batch_without_objects_trains() -> None:
    loop, model = make_loop([[make_clip(0, num_objects=0)]])
    before = model.predictor.weight.detach().clone()
    assert math.isfinite(step(loop)["total_loss"])
    assert not torch.equal(before, model.predictor.weight)


def test_mixed_precision_runs_the_convolutions_in_half_precision_on_the_cpu() -> None:
    seen = []
    for mixed in (False, True):
        loop, model = make_loop([[make_clip(0)]], mixed_precision=mixed)
        model.predictor.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
        step(loop)
        assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())
    assert seen == [torch.float32, torch.bfloat16]


def test_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled() -> None:
    weights = []
    for scale in (None, 1024.0):
        loop, model = make_loop([[make_clip(0)]])
        clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01]
        cfg = make_cfg("unused", *clip, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
        loop.optimizer = build_optimizer(cfg, model)
        if scale:
            loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step(loop)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_eval_mode_and_a_useless_accumulation_are_refused() -> None:
    loop, model = make_loop([[make_clip(0)]])
    model.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        step(loop)
    with pytest.raises(ValueError, match="ACCUMULATE"):
        make_loop([], accumulate=0)


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    good, bad = [make_clip(0)], [make_clip(1)]
    bad[0]["image"] = [image.float() * float("nan") for image in bad[0]["image"]]
    loop, model = make_loop([good, bad], accumulate=2)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="iteration 0: loss_object=nan, loss_area=nan"):
        step(loop)
    for a, b in zip(before, model.parameters()):
        assert torch.equal(a, b)
