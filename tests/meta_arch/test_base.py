"""The parent's own work, with a system that finds one fixed object."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Instances

from vis_d2.config import add_common_config
from vis_d2.inference import TrackSelection
from vis_d2.meta_arch import VideoMetaArch
from vis_d2.meta_arch.base import common_arguments
from vis_d2.structures import VideoInstances


class Fixed(VideoMetaArch):
    """Finds a 2 x 3 rectangle in every frame and remembers how many frames it saw."""

    def losses(self, images, clips):
        return {"loss_mean": images.tensor.mean(), "frames": torch.tensor(len(images))}

    def start(self, output_size):
        return (output_size, 0)

    def step(self, images, state):
        size, seen = state
        masks = torch.zeros(1, *size, dtype=torch.bool)
        masks[0, 1:3, 2:5] = True
        tracks = [
            Instances(
                size,
                track_ids=torch.tensor([4]),
                class_probs=torch.tensor([[0.2, 0.6]]),
                pred_masks=masks,
            )
            for _ in range(len(images))
        ]
        return iter(tracks), (size, seen + len(images))


def fixed(**kwargs) -> Fixed:
    options = {
        "pixel_mean": [10.0, 20.0, 30.0],
        "pixel_std": [1.0, 2.0, 4.0],
        "size_divisibility": 8,
        "window": 1,
        "stride": 1,
        "selection": TrackSelection(mode="unique"),
    }
    return Fixed(**{**options, **kwargs})


def frames(count: int, size=(6, 7)):
    return [torch.full((3, *size), 50, dtype=torch.uint8) for _ in range(count)]


def test_preprocess_normalises_then_pads_with_zeros():
    images = fixed().preprocess(frames(2))
    assert images.tensor.shape == (2, 3, 8, 8)
    assert images.image_sizes == [(6, 7), (6, 7)]
    assert images.tensor[0, :, 0, 0].tolist() == [40.0, 15.0, 5.0]
    assert not images.tensor[:, :, 6:].any() and not images.tensor[..., 7:].any()


def test_a_video_becomes_tracks():
    model = fixed().eval()
    (out,) = model([{"image": iter(frames(3)), "height": 6, "width": 7}])
    found = out["instances"]
    assert isinstance(found, VideoInstances)
    assert (found.num_frames, found.track_ids.tolist(), found.pred_classes.tolist()) == (
        3,
        [4],
        [1],
    )
    assert found.scores.tolist() == pytest.approx([0.6])


def test_an_image_is_a_video_of_one_frame_in_detectron2s_fields():
    (out,) = fixed(window=0).eval()([{"image": frames(1)[0]}])
    found = out["instances"]
    assert found.image_size == (6, 7)
    assert found.pred_boxes.tensor.tolist() == [[2.0, 1.0, 5.0, 3.0]]  # made from the mask
    assert found.pred_masks.sum() == 6
    assert (found.track_ids.tolist(), found.pred_classes.tolist()) == ([4], [1])


def test_what_has_no_mask_in_an_image_is_not_reported():
    model = fixed().eval()
    (out,) = model([{"image": frames(1, (1, 7))[0]}])  # the rectangle begins in the second row
    assert len(out["instances"]) == 0 and out["instances"].pred_masks.shape == (0, 1, 7)


def test_training_sees_all_frames_clip_major_and_clips_must_have_one_length():
    model = fixed().train()
    clip = {"image": frames(2), "instances": []}
    assert model([clip, clip])["frames"] == 4
    with pytest.raises(ValueError, match=r"one length, found \[1, 2\]"):
        model([clip, {"image": frames(1), "instances": []}])


def test_normalisation_is_no_part_of_checkpoints():
    assert not fixed().state_dict()


def test_every_common_key_arrives_where_it_belongs():
    cfg = get_cfg()
    add_common_config(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    test = {"MODE": "unique", "AGGREGATE": "max", "OVER": "all", "MAX_TRACKS": 3}
    test.update(SCORE_THRESHOLD=0.25, WINDOW=7, STRIDE=4)
    for key, value in test.items():
        assert cfg.TEST.VIS[key] != value  # or this test would not see whether it is read
        cfg.TEST.VIS[key] = value
    model = Fixed(**common_arguments(cfg, SimpleNamespace(size_divisibility=16)))
    assert model.pixel_mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert model.pixel_std.flatten().tolist() == [4.0, 5.0, 6.0]
    assert (model.size_divisibility, model.window, model.stride) == (16, 7, 4)
    assert vars(model.selection) == {
        "mode": "unique",
        "aggregate": "max",
        "over": "all",
        "max_tracks": 3,
        "score_threshold": 0.25,
    }
