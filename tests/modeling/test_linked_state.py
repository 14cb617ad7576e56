import torch
from detectron2.structures import ImageList

from vis_d2.modeling import ClipLinker, LinkedFrame, LinkedState


def test_masks_leave_without_padding_at_output_size():
    memory = ClipLinker(overlap=1).start()
    state = LinkedState.start((8, 12), memory)
    assert state.image_size == state.padded_size == (8, 12)
    images = ImageList(torch.zeros(2, 3, 32, 32), [(16, 24), (16, 24)])
    state = state.after(images, memory)
    assert (state.image_size, state.padded_size, state.output_size) == ((16, 24), (32, 32), (8, 12))
    # At stride 4 the frame is 4 x 6 of 8 x 8 cells; its left half is the object, and all padding.
    masks = torch.full((1, 8, 8), 5.0)
    masks[:, :4, 3:6] = -5.0
    frame = LinkedFrame(torch.tensor([7]), torch.tensor([[0.2, 0.8]]), masks)
    found = state.finish(frame)
    assert found.image_size == (8, 12) and found.track_ids.tolist() == [7]
    assert torch.equal(found.class_probs, frame.class_probs)
    assert found.pred_masks.shape == (1, 8, 12) and found.pred_masks.dtype == torch.bool
    assert found.pred_masks[:, :, :6].all() and not found.pred_masks[:, :, 6:11].any()
    own = torch.zeros(1, 8, 12, dtype=torch.bool)
    assert state.finish(frame, own).pred_masks is own


def test_the_next_window_brings_its_own_sizes_and_memory():
    linker = ClipLinker(overlap=1)
    state = LinkedState.start((8, 12), linker.start())
    memory = linker.start()
    after = state.after(ImageList(torch.zeros(1, 3, 64, 32), [(50, 30)]), memory)
    assert after.memory is memory and state.padded_size == (8, 12)
    assert (after.image_size, after.padded_size, after.output_size) == ((50, 30), (64, 32), (8, 12))
