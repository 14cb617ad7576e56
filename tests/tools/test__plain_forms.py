import pytest
import torch
from detectron2.modeling import build_model

from systems import moving_squares, small_cfg
from vis_d2.layers import MultiheadAttention
from vis_d2.tools._plain_forms import attention_with_matrices, finish_window


@pytest.mark.parametrize("padded", [False, True])
def test_matrices_say_what_the_kernels_say(padded):
    torch.manual_seed(0)
    module = MultiheadAttention(channels=8, num_heads=2)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False, True, False, True, False]]) if padded else None
    expected, usual = module(query, key, value, padding), MultiheadAttention.forward
    with attention_with_matrices():
        assert MultiheadAttention.forward is not usual
        torch.testing.assert_close(module(query, key, value, padding), expected)
    assert MultiheadAttention.forward is usual


def test_the_usual_attention_comes_back_after_an_error():
    usual = MultiheadAttention.forward
    with pytest.raises(RuntimeError), attention_with_matrices():
        raise RuntimeError("in between")
    assert MultiheadAttention.forward is usual


def test_a_window_is_finished_and_the_linker_left_as_it_was():
    torch.manual_seed(0)
    model = build_model(small_cfg("tt_spn", "MODEL.TT_SPN.FRAME_SCORE_THR", 0.0)).eval()
    tracks = finish_window(model, moving_squares(3)["image"])
    assert tracks.class_probs.shape == (4, 3, 5) and tracks.masks.shape[:2] == (4, 3)
    assert not tracks.masks.requires_grad
    assert "update" not in vars(model.linker)
