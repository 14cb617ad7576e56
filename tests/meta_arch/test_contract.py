"""What every system must keep, on its quick config. A new system adds its name in systems.py."""

import weakref
from typing import Any, Iterator

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from systems import META_ARCHS, OVERFIT, moving_squares, quick_cfg
from vis_d2.inference import stream
from vis_d2.structures import VideoInstances, rle


@pytest.fixture(scope="module", params=META_ARCHS)
def system(request) -> str:
    return request.param


@pytest.fixture
def model(system):
    return build_model(quick_cfg(system))


def video(num_frames: int, **kwargs) -> dict:
    """A video dict for evaluation: frames and output size only."""
    clip = moving_squares(num_frames, **kwargs)
    return {k: clip[k] for k in ("video_id", "image", "height", "width")}


def same(a: VideoInstances, b: VideoInstances) -> bool:
    return (
        torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        and a.segmentations == b.segmentations
    )


@pytest.fixture(scope="module")
def trained(system):
    """Has learned one clip by heart, from scratch, so that it has something to report."""
    torch.manual_seed(0)
    model = build_model(quick_cfg(system)).train()
    clip = moving_squares(max(clip_length(system), 2))
    steps, learning_rate = OVERFIT[system]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model([clip]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return model.eval()


def clip_length(system: str) -> int:
    return quick_cfg(system).INPUT.CLIP.NUM_FRAMES


def check_losses(losses: dict) -> None:
    assert losses
    for name, value in losses.items():
        assert name.startswith("loss_")
        assert value.ndim == 0 and torch.isfinite(value), name


def check_gradients(model, losses: dict) -> None:
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} receives no gradient"
            assert torch.isfinite(parameter.grad).all(), name


def test_trains(model, system):
    clips = [moving_squares(clip_length(system), size=(128, 192)) for _ in range(2)]
    losses = model.train()(clips)
    check_losses(losses)
    check_gradients(model, losses)
    # Parts that start at zero, so as not to disturb, let gradients through after one step.
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    model.zero_grad()
    check_gradients(model, model(clips))
    dead = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert len(dead) <= 0.05 * len(list(model.parameters())), dead


def test_trains_without_objects(model, system):
    losses = model.train()([moving_squares(clip_length(system), num_objects=0)])
    check_losses(losses)
    check_gradients(model, losses)


def test_trains_with_an_object_that_is_invisible_in_some_frames(model, system):
    clip = moving_squares(clip_length(system))
    hidden = clip["instances"][-1]
    hidden.gt_visible[0] = False
    hidden.gt_masks.tensor[0] = False
    hidden.gt_boxes.tensor[0] = 0
    losses = model.train()([clip])
    check_losses(losses)
    check_gradients(model, losses)


def test_trains_on_clips_of_different_sizes(model, system):
    length = clip_length(system)
    losses = model.train()([moving_squares(length), moving_squares(length, size=(80, 72))])
    check_losses(losses)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 7])
def test_a_video_gives_one_valid_result(trained, num_frames):
    (out,) = trained([video(num_frames)])
    result = out["instances"]
    assert isinstance(result, VideoInstances)
    assert (result.num_frames, result.image_size) == (num_frames, (64, 96))
    assert len(result) > 0
    assert torch.equal(result.scores, result.scores.sort(descending=True).values)
    assert (0 <= result.scores).all() and (result.scores <= 1).all()
    assert all(mask is None or rle.area([mask]) > 0 for row in result.segmentations for mask in row)


def test_an_image_answers_as_detectron2_models_do(trained):
    image = video(1)["image"][0]
    (out,) = trained([{"image": image, "height": 128, "width": 192}])
    found = out["instances"]
    assert isinstance(found, Instances) and len(found) > 0
    assert found.image_size == (128, 192)
    assert found.pred_masks.shape == (len(found), 128, 192)
    for field in ("pred_boxes", "scores", "pred_classes", "track_ids"):
        assert len(found.get(field)) == len(found)


def test_no_state_leaks_from_video_to_video(trained):
    first = trained([video(3)])[0]["instances"]
    trained([video(4, num_objects=1, size=(80, 72))])
    assert same(first, trained([video(3)])[0]["instances"])


def test_a_batch_of_two_equals_two_batches_of_one(trained):
    one, two = video(3), video(2, size=(80, 72))
    both = [out["instances"] for out in trained([one, two])]
    assert same(both[0], trained([one])[0]["instances"])
    assert same(both[1], trained([two])[0]["instances"])


def test_padding_leaves_no_trace(trained):
    """A frame size that is no multiple of anything: masks and boxes stay inside the frame."""
    (out,) = trained([{**video(2, size=(61, 83)), "height": 122, "width": 166}])
    result = out["instances"]
    assert result.image_size == (122, 166)
    for t in range(2):
        boxes = result.frame(t).pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= 166).all() and (boxes[:, 3] <= 122).all()


def tensors_in(value: Any, seen: set) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


def test_memory_does_not_grow_with_the_video(trained, monkeypatch):
    """The state between steps stays the same size, and no frame's masks outlive the next frames."""
    if trained.window == 0:
        pytest.skip("the whole video is one window by design")
    frames = video(24, num_objects=1)["image"]
    state_bytes, masks = [], []
    original = trained.step

    def watched(images, state):
        tracks, state = original(images, state)
        state_bytes.append(sum(t.numel() * t.element_size() for t in tensors_in(state, set())))
        return tracks, state

    monkeypatch.setattr(trained, "step", watched)
    alive = []
    for _, tracks in stream(trained, frames, (64, 96)):
        masks.append(weakref.ref(tracks.pred_masks))
        del tracks
        alive.append(sum(ref() is not None for ref in masks))
    assert max(alive) <= 2 * max(trained.window, 1)
    few = state_bytes[: len(state_bytes) // 2]
    assert max(state_bytes) <= 1.1 * max(few) + 16384


def test_saves_and_reloads(trained, system, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    torch.manual_seed(123)
    other = build_model(quick_cfg(system)).eval()
    assert not same(other([video(3)])[0]["instances"], trained([video(3)])[0]["instances"])
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert same(other([video(3)])[0]["instances"], trained([video(3)])[0]["instances"])


def test_overfits_one_clip(trained, system):
    """From scratch to tracks that lie on the objects, in seconds."""
    clip = moving_squares(max(clip_length(system), 2))
    inputs = {k: clip[k] for k in ("video_id", "image", "height", "width")}
    result = trained([inputs])[0]["instances"]
    truth = [
        [rle.encode(frame.gt_masks.tensor[i : i + 1])[0] for frame in clip["instances"]]
        for i in (0, 1)
    ]
    iou = rle.tube_iou(result.segmentations, truth)
    classes = result.pred_classes
    for i in (0, 1):
        assert iou[(classes == i).numpy(), i].max(initial=0) > 0.7
