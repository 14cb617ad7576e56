"""Masks of matched queries only (MATCH_MASK False): the same losses, from fewer RoIs."""

import pytest
import torch
from detectron2.modeling import build_model

from systems import moving_squares, small_cfg
from vis_d2.meta_arch.efficient_vis.losses import mask_losses
from vis_d2.structures import TrackletTargets

N, T = 4, 3
SIZES = torch.tensor([[96.0, 64.0, 96.0, 64.0]] * 2)
VALID = torch.tensor([[True] * T, [True, True, False]])


def build(*opts):
    keys = [x if "." in str(x) or i % 2 else f"MODEL.EFFICIENT_VIS.{x}" for i, x in enumerate(opts)]
    torch.manual_seed(0)
    return build_model(small_cfg("efficient_vis", *keys)).train()


def of_all(*opts):
    """Masks cost nothing in matching either, but are made of all queries."""
    return build("MATCH_MASK_IOU", 0.0, *opts)


def of_pairs(*opts):
    return build("MATCH_MASK", False, *opts)


def run(model, clips, mixed: bool = False):
    """Losses, gradients, and the number of instances that each mask head call got."""
    rows, calls = [], []
    for stage in model.refiner.stages:
        hook = rows.append
        stage.mask_head.register_forward_hook(
            lambda m, args, out, hook=hook: hook(args[0].shape[1])
        )
        stage.mask_head.mask_logits.register_forward_hook(lambda m, i, o: calls.append(o.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        losses = model(clips)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses, grads, rows, set(calls)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("MASK_CLASS_AGNOSTIC", False),
        ("RECOMPUTE", "all"),
        ("NEW_TRACKS", "background"),
        ("DYN_CONV", "still"),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_masks_of_all_queries(opts):
    """A pair of clips, with one object and with two: their pairs are of different number."""
    clips = [moving_squares(6, num_objects=1), moving_squares(6, num_objects=2)]
    expected, wanted, every, _ = run(of_all(*opts), clips)
    losses, grads, some, _ = run(of_pairs(*opts), clips)
    assert losses.keys() == expected.keys() and len(losses) == 10
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
    for name, grad in wanted.items():
        scale = max(float(grad.abs().max()), 1e-3)
        assert torch.allclose(grads[name], grad, atol=1e-3 * scale), name
    # Two clips with up to two pairs each, instead of four queries each.
    assert every == [8] * 4 and some == [4] * 4


def test_without_any_pair_every_parameter_still_has_a_gradient():
    losses, grads, rows, _ = run(of_pairs(), [moving_squares(T, num_objects=0)])
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    assert rows == [1, 1]
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_masks_are_made_in_the_precision_of_the_model_and_losses_in_full():
    losses, _, _, made = run(of_pairs(), [moving_squares(T)], mixed=True)
    assert made == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert run(of_pairs(), [moving_squares(T)])[3] == {torch.float32}


def kept_bytes(model) -> int:
    """What the forward pass keeps for the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model([moving_squares(T, num_objects=1)])
    assert kept
    return sum(sizes.values())


def test_less_is_kept_for_the_backward_pass():
    wide = ("MASK_POOL", 14, "MASK_CONVS", 4)  # the real size, beside which nothing else counts
    assert kept_bytes(of_pairs(*wide)) < 0.5 * kept_bytes(of_all(*wide))


def layers_of(model, *args):
    torch.manual_seed(3)
    pyramid = [torch.randn(2 * T, 16, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    return pyramid, model.refiner(pyramid, SIZES, VALID, *args)[0]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("masks", [1, 5])
def test_masks_made_later_are_those_that_would_have_been_made_at_once(number, masks):
    model, other = of_pairs(), of_all()
    if masks > 1:
        model, other = (f("MASK_CLASS_AGNOSTIC", False) for f in (of_pairs, of_all))
    pyramid, layers = layers_of(model)
    assert all("pred_masks" not in outputs for outputs in layers)
    matches = [
        (torch.tensor([2]), torch.tensor([0])),
        (torch.tensor([3, 0, 1]), torch.tensor([1, 0, 2])),
    ]
    outputs = model.refiner.add_masks(number, layers[number], pyramid, VALID, matches)
    made, expected = outputs["matched_masks"], layers_of(other)[1][number]["pred_masks"]
    assert made.shape == (2, 3, T, masks, 8, 8)
    assert torch.allclose(made[0, :1], expected[0, [2]], atol=1e-4)
    assert torch.allclose(made[1], expected[1, [3, 0, 1]], atol=1e-4)
    assert "matched_masks" not in layers[number]


def test_at_inference_the_last_stage_makes_all_masks():
    _, layers = layers_of(of_pairs().eval(), None, False)
    assert ["pred_masks" in outputs for outputs in layers] == [False, True]


@pytest.mark.parametrize("channels", [1, 2])
def test_mask_losses_read_one_row_per_pair(channels):
    target = TrackletTargets.from_frames(moving_squares(T)["instances"], (64, 96))
    torch.manual_seed(1)
    masks = torch.randn(1, N, T, channels, 8, 8)
    boxes = torch.tensor([6.0, 8.0, 40.0, 34.0]).expand(1, N, T, 4)
    pairs = [(torch.tensor([3, 1]), torch.tensor([1, 0]))]
    one = torch.tensor(1.0)
    everybody = mask_losses({"pred_masks": masks, "pred_boxes": boxes}, [target], pairs, one)
    rows = torch.cat([masks[:, [3, 1]], torch.full_like(masks[:, :2], 7.0)], dim=1)  # filled up
    found = mask_losses({"matched_masks": rows, "pred_boxes": boxes}, [target], pairs, one)
    assert found == everybody and found["loss_mask"] > 0
