"""Frame by frame with a memory: the same numbers as from the whole clip, and a state that stays."""

import pytest
import torch
from detectron2.structures import ImageList
from hitf_parts import awake, build

from systems import moving_squares
from vis_d2.inference import stream
from vis_d2.meta_arch.hitf.backbone import distinct_frames
from vis_d2.meta_arch.hitf.fusion import Memory, reference_index


@pytest.fixture(scope="module", params=["bn", "scaled_ln"])
def model(request):
    # Every slot shows something, and one of four has at least a quarter of each pixel.
    opts = ("EMIT", "score", "MASK_THR", 0.2)
    model = awake(build("ATTN_NORM", request.param, *opts))
    model.heads.logit_norm.weight.data.fill_(0.5 if request.param == "bn" else 2.0)
    return model


@pytest.fixture
def images(model):
    return model.preprocess(moving_squares(5, size=(40, 56))["image"])


def online(model, images, monkeypatch):
    """Outputs of each step, and the last state."""
    seen, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *a: seen.append(predict(*a)) or seen[-1])
    state = model.start((40, 56))
    for t in range(len(images.tensor)):
        one = ImageList(images.tensor[t : t + 1], images.image_sizes[t : t + 1])
        tracks, state = model.step(one, state)
        list(tracks)
    monkeypatch.undo()
    return seen, state


def joined(seen, name):
    return torch.cat([outputs[name] for outputs in seen])


@torch.no_grad()
def test_frame_by_frame_equals_the_whole_clip(model, images, monkeypatch):
    seen, _ = online(model, images, monkeypatch)
    features = model.encode(images.tensor, images.image_sizes)
    index = torch.tensor([reference_index(t, 2) for t in range(5)])
    batch = model.predict(features, model.remember(features).select(index))
    for name in ("pred_logits", "pred_masks", "pixel_features"):
        torch.testing.assert_close(joined(seen, name), batch[name], atol=1e-5, rtol=0)
    assert batch["pred_masks"].std(0).max() > 1e-3  # frames differ at all


@torch.no_grad()
def test_what_is_kept_equals_encoding_the_references_anew(model, images, monkeypatch):
    seen, _ = online(model, images, monkeypatch)
    for t in range(5):
        recent = slice(max(t - 2, 0), t + 1)
        anew = model.predict_last(ImageList(images.tensor[recent], images.image_sizes[recent]))
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(seen[t][name], anew[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_references_matter_and_so_does_their_order(model, images):
    def last(*frames):
        rows = list(frames)
        return model.predict_last(
            ImageList(images.tensor[rows], [images.image_sizes[0]] * len(rows))
        )["pred_masks"]

    assert not torch.allclose(last(0, 1, 4), last(2, 3, 4), atol=1e-3)
    assert not torch.allclose(last(0, 1, 4), last(1, 0, 4), atol=1e-4)
    torch.testing.assert_close(last(3, 1, 4), last(0, 3, 1, 4)[-1:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_missing_references_are_the_oldest_frame_again(model, images):
    """The first frame refers to itself; in training, a clip that repeats it says the same."""
    frame, size = images.tensor[:1], images.image_sizes[:1]
    alone = model.predict_last(ImageList(frame, size))
    repeated = model.predict_last(ImageList(frame.expand(3, -1, -1, -1), size * 3))
    torch.testing.assert_close(alone["pred_masks"], repeated["pred_masks"], atol=1e-5, rtol=0)
    two = ImageList(images.tensor[:2], images.image_sizes[:2])
    three = ImageList(images.tensor[[0, 0, 1]], images.image_sizes[:3])
    torch.testing.assert_close(
        model.predict_last(two)["pred_masks"], model.predict_last(three)["pred_masks"],
        atol=1e-5, rtol=0,
    )  # fmt: skip


def test_reference_index_clamps():
    assert reference_index(5, 3) == [4, 3, 2]
    assert reference_index(2, 3) == [1, 0, 0]
    assert reference_index(0, 3) == [0, 0, 0]


def test_a_frame_that_a_clip_repeats_is_encoded_once():
    a, b, c = torch.randn(3, 3, 4, 4)
    rows, index = distinct_frames(torch.stack([a, a, a, b, b, a, c, c]), 2)
    assert rows == [0, 3, 4, 5, 6]
    assert index.tolist() == [[0, 0, 0, 1], [2, 3, 4, 4]]


def test_the_state_holds_reduced_keys_and_values_of_a_fixed_number_of_frames(
    model, images, monkeypatch
):
    _, state = online(model, images, monkeypatch)
    assert len(state.references) == 2 and all(len(m) == 1 for m in state.references)
    height, width = images.tensor.shape[-2:]
    cells = ((height - 1) // 16 + 1) * ((width - 1) // 16 + 1)
    for memory in state.references:
        assert isinstance(memory, Memory) and len(memory.entries) == 2  # inter-frame layers
        for entry in memory.entries:  # keys 8 and values 16, of 4 slots and all cells
            assert entry.shape == (1, 24, 4 + cells)
    assert state.labels.dtype == torch.uint8 and state.labels.shape == (40, 56)


def test_masks_of_a_frame_are_disjoint_and_identities_unique(model):
    video = moving_squares(6, size=(40, 56))["image"]
    for _, tracks in stream(model, video, (80, 112)):
        assert tracks.image_size == (80, 112) and len(tracks) > 0
        assert tracks.pred_masks.sum(0).max() <= 1 and tracks.pred_masks.flatten(1).any(1).all()
        assert len(set(tracks.track_ids.tolist())) == len(tracks)
        assert tracks.class_probs.shape == (len(tracks), 5)


def test_identities_start_anew_with_each_video(model):
    video = moving_squares(3, size=(40, 56))["image"]
    first, second = (
        [t.track_ids.tolist() for _, t in stream(model, video, (40, 56))] for _ in range(2)
    )
    assert first == second and 0 in first[0]


def test_a_frame_without_any_object(model):
    silent = build("EMIT", "nonempty").eval()  # the prior of the empty class is 0.9
    ((_, tracks),) = stream(silent, moving_squares(1, 0, (40, 56))["image"], (40, 56))
    assert len(tracks) == 0 and tracks.pred_masks.shape == (0, 40, 56)


def test_identity_follows_a_mask_that_changes_its_slot(model, monkeypatch):
    """The heads are told to swap the two slots after the first frame."""
    answers = []
    for first, second in ((1, 2), (2, 1)):
        masks = torch.full((1, 4, 11, 15), -9.0)
        masks[0, first, :, :7], masks[0, second, :, 7:] = 9.0, 9.0
        logits = torch.zeros(1, 4, 6)
        logits[0, [first, second], [0, 1]] = 9.0
        logits[0, [0, 3], 5] = 9.0
        answers.append({"pred_logits": logits, "pred_masks": masks})
    replies = iter(answers)
    monkeypatch.setattr(model, "predict", lambda *a: next(replies))
    found = [t for _, t in stream(model, moving_squares(2, 0, (40, 56))["image"], (40, 56))]
    by_class = [dict(zip(t.class_probs.argmax(1).tolist(), t.track_ids.tolist())) for t in found]
    assert len(by_class[0]) == 2 and by_class[0] == by_class[1]
    assert found[0].track_ids.tolist() != found[1].track_ids.tolist()  # in the order of the slots
