"""Which normalisation is used where."""

import logging

import pytest
import torch
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm, logger
from hitf_parts import build
from torch import nn

from systems import moving_squares
from vis_d2.layers import ChannelNorm
from vis_d2.meta_arch.hitf.norms import Norms, Scaled, batch_norm_name


@pytest.mark.parametrize(
    "processes, device, name, kind",
    [
        (1, "cuda", "BN", nn.BatchNorm2d),
        (1, "cpu", "BN", nn.BatchNorm2d),
        (8, "cuda:1", "SyncBN", nn.SyncBatchNorm),
        (2, "cpu", "naiveSyncBN", NaiveSyncBatchNorm),
    ],
)
def test_batch_norm_is_synchronised_where_several_processes_run(
    processes, device, name, kind, monkeypatch
):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    assert batch_norm_name(device) == name
    norm = Norms(kind="BN", batch_norm=name, eps=0.01, momentum=0.2)(6, scale=0.5)
    assert type(norm) is kind
    assert (norm.eps, norm.momentum, norm.weight[0].item()) == (0.01, 0.2, 0.5)


def test_all_of_a_model_is_synchronised_or_none(monkeypatch):
    def kinds(*opts):
        return {type(m) for m in build(*opts).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}  # fmt: skip  # noqa: E501

    assert kinds("MODEL.RESNETS.NORM", "SyncBN") == {nn.BatchNorm2d}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert kinds("MODEL.RESNETS.NORM", "BN") == {NaiveSyncBatchNorm}
    assert kinds("ATTN_NORM", "scaled_ln", "NORM", "GN") == set()  # and a frozen backbone


def test_other_kinds():
    x = torch.randn(2, 6, 3, 4)
    assert isinstance(Norms(kind="GN")(48), nn.GroupNorm) and Norms(kind="GN")(48).num_groups == 16
    norm = Norms(kind="LN")(6)
    assert isinstance(norm, ChannelNorm)
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(norm(x).std(1, False), torch.ones(2, 3, 4), atol=1e-3, rtol=0)
    similarity = Norms(kind="LN").similarity(8, 16)
    assert isinstance(similarity, Scaled) and similarity.factor == 0.25
    assert Norms(kind="BN").similarity(8, 16).num_features == 8
    with pytest.raises(ValueError, match="kind: expected one of .*'IN'"):
        Norms(kind="IN")


def warnings_of(model, clips, caplog):
    logger._LOG_COUNTER.clear()  # which remembers what was said once
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model(clips)
    return [r.getMessage() for r in caplog.records if "clips per iteration" in r.getMessage()]


def test_small_batches_are_warned_of(caplog):
    clip = moving_squares(3, size=(32, 32))
    (message,) = warnings_of(build(), [clip], caplog)
    assert message.startswith("1 clips per iteration") and "ATTN_NORM to scaled_ln" in message
    assert not warnings_of(build(), [clip] * 8, caplog)
    assert not warnings_of(build("ATTN_NORM", "scaled_ln"), [clip], caplog)
