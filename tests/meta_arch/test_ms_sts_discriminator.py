"""The judge of foregrounds: its shape, what it hears of, and who learns from which loss."""

from math import exp, log
from typing import Any, Dict, Sequence

import pytest
import torch
from detectron2.utils.events import EventStorage
from room_parts import rectangles
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.meta_arch.ms_sts.discriminator import (
    AdversarialLosses,
    Discriminator,
    Scene,
    foregrounds,
)

CHANNELS, H, W = 8, 64, 96


def scene(frames: int = 2, channels: int = CHANNELS, size=(H, W), seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(frames, *shape, generator=generator)

    height, width = size
    memory = [draw(channels, height // s, width // s).requires_grad_() for s in (8, 16, 32)]
    judged = torch.ones(frames, height // 32, width // 32, dtype=torch.bool)
    return Scene(draw(3, height, width), memory, judged)


def maps(value: float, frames: int = 2) -> Tensor:
    return torch.full((frames, 1, H // 8, W // 8), value)


class Scale(nn.Module):
    """Answers with the mean mask of a patch, times a number; activations are the same, twice."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(
        self, frames: Tensor, memory: Sequence[Tensor], masks: Tensor, every: bool = False
    ) -> Tensor:
        logits = F.avg_pool2d(masks, 4) * self.scale
        return logits.expand(-1, 2, -1, -1) if every else logits


def small() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels=CHANNELS)


def test_the_number_of_parameters():
    judge = Discriminator()
    assert sum(p.numel() for p in judge.parameters()) == 2_891_008
    assert not [
        name
        for name, m in judge.named_modules()
        if getattr(m, "bias", None) is not None and isinstance(m, nn.Conv2d)
    ]
    convolutions = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    widths = [(m.in_channels, m.out_channels) for m in convolutions]
    assert widths == [
        (260, 256),
        (256, 256),
        (256, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 1),
    ]
    assert {(m.kernel_size, m.stride, m.padding) for m in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_one_answer_per_patch_of_stride_32(size):
    part = scene(3, size=size)
    masks = torch.zeros(3, 1, size[0] // 8, size[1] // 8)
    logits = small()(part.frames, part.memory, masks)
    assert logits.shape == (3, 1, size[0] // 32, size[1] // 32)
    layers = small()(part.frames, part.memory, masks, every=True)
    assert layers.shape == (3, 15 * CHANNELS // 4, size[0] // 32, size[1] // 32)


def test_every_input_is_heard_and_answers_are_not_bounded():
    judge, part = small(), scene()
    frames = part.frames.clone().requires_grad_()
    masks = maps(0.5).requires_grad_()
    logits = judge(frames, part.memory, masks)
    logits.sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (frames, masks, *part.memory))
    with torch.no_grad():
        judge.last[1].weight.mul_(1000)
    assert judge(frames, part.memory, masks).abs().max() > 1  # logits: no sigmoid at the end


def test_frames_are_judged_one_by_one():
    judge, part = small(), scene()
    logits = judge(part.frames, part.memory, maps(0.5))
    alone = judge(part.frames[1:], [m[1:] for m in part.memory], maps(0.5, 1))
    assert torch.allclose(logits[1:], alone, atol=1e-5)


def test_losses_by_hand():
    """Answers 2 for true and 0 for predicted foregrounds."""
    losses = AdversarialLosses(weight=0.1)(Scale(2.0), scene(), maps(0.0), maps(1.0))
    assert list(losses) == ["loss_disc", "loss_adv"]
    true, pred = log(1 + exp(-2)), log(2)
    assert losses["loss_disc"].item() == pytest.approx((true + pred) / 2)
    assert losses["loss_adv"].item() == pytest.approx(0.1 * log(2))
    losses = AdversarialLosses(weight=1.0)(Scale(2.0), scene(), maps(1.0), maps(1.0))
    assert losses["loss_adv"].item() == pytest.approx(true)  # it wants to be taken for a true one
    assert losses["loss_disc"].item() == pytest.approx((true + true + 2) / 2)


def test_the_distance_of_activations_by_hand():
    """Activations 3 and 1.5, two alike."""
    adversarial = AdversarialLosses(weight=1.0, fm_weight=0.5)
    losses = adversarial(Scale(3.0), scene(), maps(0.5), maps(1.0))
    assert losses["loss_fm"].item() == pytest.approx(0.5 * 1.5)


def test_only_judged_patches_count():
    part = scene()
    part.judged[0] = False
    part.judged[1, :, 0] = False  # four patches are left
    pred = maps(0.0)
    pred[0] = pred[1, :, :, :4] = 5.0
    losses = AdversarialLosses(weight=1.0, fm_weight=1.0)(Scale(1.0), part, pred, maps(1.0))
    assert losses["loss_adv"].item() == pytest.approx(log(2))
    assert losses["loss_disc"].item() == pytest.approx((log(1 + exp(-1)) + log(2)) / 2)
    assert losses["loss_fm"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("iteration, share", [(0, 0.0), (250, 0.25), (1000, 1.0), (5000, 1.0)])
def test_the_weight_rises(iteration, share):
    adversarial = AdversarialLosses(weight=0.1, ramp=1000, fm_weight=1.0)
    with EventStorage(iteration):
        losses = adversarial(Scale(1.0), scene(), maps(0.0), maps(1.0))
    assert losses["loss_adv"].item() == pytest.approx(0.1 * share * log(2))
    assert losses["loss_fm"].item() == pytest.approx(share)
    assert losses["loss_disc"].item() > 0.3  # the discriminator learns from the start


def test_outside_of_a_training_loop_all_of_the_weight_counts():
    losses = AdversarialLosses(weight=0.1, ramp=1000)(Scale(1.0), scene(), maps(0.0), maps(1.0))
    assert losses["loss_adv"].item() == pytest.approx(0.1 * log(2))


def gradients(name: str, **more: Any) -> Dict[str, bool]:
    """Who learns from one loss: the discriminator, the maps, the predicted foreground."""
    judge, part, pred = small(), scene(), maps(0.3).requires_grad_()
    AdversarialLosses(weight=0.1, **more)(judge, part, pred, maps(1.0))[name].backward()
    return {
        "judge": any(p.grad is not None for p in judge.parameters()),
        "memory": all(m.grad is not None and bool(m.grad.any()) for m in part.memory),
        "pred": pred.grad is not None and bool(pred.grad.any()),
    }


def test_the_discriminator_learns_alone():
    assert gradients("loss_disc") == {"judge": True, "memory": False, "pred": False}


@pytest.mark.parametrize("name", ["loss_adv", "loss_fm"])
def test_the_segmenter_learns_alone(name):
    assert gradients(name, fm_weight=1.0) == {"judge": False, "memory": True, "pred": True}


def test_one_backward_pass_is_both_steps():
    """Gradients of the sum are those of each loss by itself."""
    sums, single = [], []
    for names in (["loss_disc", "loss_adv"], ["loss_disc"], ["loss_adv"]):
        judge, part, pred = small(), scene(), maps(0.3).requires_grad_()
        losses = AdversarialLosses(weight=0.1)(judge, part, pred, maps(1.0))
        sum(losses[name] for name in names).backward()
        holders = [*judge.parameters(), *part.memory, pred]
        grads = [p.grad for p in holders]
        (sums if len(names) == 2 else single).append(grads)
    for both, disc, adv in zip(sums[0], *single):
        assert (disc is None) != (adv is None)
        assert torch.equal(both, adv if disc is None else disc)


def test_no_frames_leave_zeros_that_hang_on_every_parameter():
    judge, part = small(), scene(0)
    none = maps(0.0, 0)
    losses = AdversarialLosses(weight=0.1, fm_weight=1.0)(judge, part, none, none)
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_adv": 0.0,
        "loss_disc": 0.0,
        "loss_fm": 0.0,
    }
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in judge.parameters())


def test_the_segmenter_is_charged_less_the_closer_it_comes_to_the_truth():
    """The discriminator learns to tell a square from nothing, then judges what lies between."""
    judge, part = small(), scene()
    true, pred = maps(0.0), maps(0.0)
    true[..., 2:6, 3:9] = 1.0
    adversarial = AdversarialLosses(weight=1.0)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, betas=(0.5, 0.999))
    first = None
    for _ in range(40):
        optimizer.zero_grad()
        loss = adversarial(judge, part, pred, true)["loss_disc"]
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    charges = [
        adversarial(judge, part, share * true, true)["loss_adv"].item() for share in (0.0, 0.5, 1.0)
    ]
    assert charges[0] > charges[1] > charges[2]
    assert charges[2] < 0.2 * charges[0]


def test_foregrounds_by_hand():
    """Clip 0 has two objects and queries, clip 1 none; 32 x 32 pixels, two frames."""
    boxes = [[[0, 0, 8, 8], [0, 0, 8, 8]], [[0, 0, 4, 8], [16, 16, 32, 32]]]
    two = rectangles(boxes, length=2)
    two.masks = two.masks[..., :32, :32]
    none = rectangles([], length=2)
    none.masks = none.masks[..., :32, :32]
    logits = torch.full((2, 2, 8, 8), -50.0)
    logits[0, 0, :1, :2] = 50.0  # half of the cell in the corner
    logits[1, 0, :2, :2] = 0.0  # one half everywhere in it: the larger one counts
    empty = torch.zeros(0, dtype=torch.int64)
    matches = [(torch.tensor([3, 5]), torch.tensor([1, 0])), (empty, empty)]
    clips, pred, true = foregrounds(logits, [two, none], matches)
    assert clips.tolist() == [0]
    assert pred.shape == true.shape == (2, 1, 4, 4)
    expected = torch.zeros(2, 1, 4, 4)
    expected[0, 0, 0, 0] = 0.75  # two cells of 1 and two of one half
    assert torch.allclose(pred, expected)
    expected = torch.zeros(2, 1, 4, 4)
    expected[:, 0, 0, 0] = 1.0  # the two objects overlap in it
    expected[1, 0, 2:, 2:] = 1.0
    assert torch.equal(true, expected)


@pytest.mark.parametrize("length", [1, 2])
def test_clips_of_one_frame_and_without_objects_are_not_judged(length):
    target = rectangles([[[0, 0, 8, 8]] * length], length=length)
    target.masks = target.masks[..., :96, :96]
    empty = torch.zeros(0, dtype=torch.int64)
    one = torch.zeros(1, dtype=torch.int64)
    logits = torch.zeros(1, length, 24, 24)
    clips, pred, true = foregrounds(logits, [target, target], [(one, one), (empty, empty)])
    assert clips.tolist() == ([0] if length == 2 else [])
    assert pred.shape == true.shape == (length if length == 2 else 0, 1, 12, 12)
    clips, pred, _ = foregrounds(logits[:0], [target], [(empty, empty)])
    assert len(clips) == 0 and pred.shape == (0, 1, 12, 12)
