"""What takes the place of batch normalisation, and what cannot."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn

from vis_d2.modeling.backbone.batch_norm import replace_batch_norm

PLAIN, FUSED = "resnet18", "regnetx_002"  # the second one's layers hold their ReLU


def features(name: str) -> nn.Module:
    """A model with statistics that are not those it was built with."""
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True)
    for key, buffer in net.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return net


def kinds(net: nn.Module) -> set:
    return {type(m) for m in net.modules() if "Norm" in type(m).__name__}


@pytest.mark.parametrize("name", [PLAIN, FUSED])
def test_frozen_keeps_values_and_names_and_nothing_of_it_trains(name):
    net, x = features(name).eval(), torch.randn(1, 3, 64, 64)
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    expected = net(x)[-1]
    frozen = replace_batch_norm(net, "FrozenBN").train()
    torch.testing.assert_close(frozen(x)[-1], expected)
    assert set(frozen.state_dict()) == set(state)
    frozen(x + 1)[-1].sum().backward()
    assert all(torch.equal(v, state[k]) for k, v in frozen.state_dict().items())
    assert all(p.ndim == 4 for p in frozen.parameters())  # convolutions are all that is left
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert (FrozenBatchNormAct2d in kinds(frozen)) == (name == FUSED)


def test_nothing_changes_without_a_choice_or_with_what_is_there():
    for norm in ("", "BN"):
        assert kinds(replace_batch_norm(features(PLAIN), norm)) == {nn.BatchNorm2d}
    transformer = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert kinds(replace_batch_norm(transformer, "")) == {nn.LayerNorm}


def test_synchronised_keeps_weights_and_statistics():
    net = features(PLAIN)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    net = replace_batch_norm(net, "SyncBN")
    assert kinds(net) == {nn.SyncBatchNorm}
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_group_norm_has_32_groups():
    net = replace_batch_norm(features(PLAIN), "GN")
    assert kinds(net) == {nn.GroupNorm}
    assert {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)} == {32}
    assert net.layer4[0].bn1.num_channels == 512
    assert net(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 512, 2, 2)


@pytest.mark.parametrize(
    "net, norm, message",
    [
        (nn.Sequential(nn.BatchNorm2d(64)), "LN", "expected one of .*GN.*found 'LN'"),
        (nn.Sequential(nn.LayerNorm(64)), "BN", "without batch normalisation, found 'BN'"),
        (nn.Sequential(nn.BatchNorm2d(48)), "GN", "multiple of 32 .*0 is a BatchNorm2d of 48"),
    ],
)
def test_what_cannot_be_replaced_is_an_error(net, norm, message):
    with pytest.raises(ValueError, match=f"MODEL.TIMM.NORM: .*{message}"):
        replace_batch_norm(net, norm)


def test_group_norm_does_not_swallow_an_activation():
    with pytest.raises(ValueError, match="GN replaces BatchNorm2d .*0 is a BatchNormAct2d"):
        replace_batch_norm(nn.Sequential(BatchNormAct2d(64)), "GN")
