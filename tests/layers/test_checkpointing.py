"""Recomputing activations changes the memory, and nothing else."""

import copy
from typing import Any, Callable, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from vis_d2.layers import checkpointed, frozen_statistics, recompute_blocks


def make_block(momentum: Any = 0.1) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(),
    )


def train_step(run: Callable[..., Tensor], x: Tensor) -> Tuple[Tensor, Tensor]:
    """Value and gradient by the input; dropout draws the same in every call."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    value = run(x)
    (value**2).sum().backward()
    return value.detach(), x.grad


def batch(seed: int) -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) + seed


@pytest.mark.parametrize("momentum", [0.1, None])  # None: the mean over all batches
def test_values_gradients_and_running_statistics_are_those_of_the_plain_module(momentum):
    plain, block = make_block(momentum), make_block(momentum)
    run = checkpointed(block, block)
    for seed in (1, 2):
        expected, found = train_step(plain, batch(seed)), train_step(run, batch(seed))
        assert all(torch.equal(a, b) for a, b in zip(expected, found))
    for (name, expected), found in zip(plain.named_parameters(), block.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)
    # Every batch counts once in the statistics, though it passes twice.
    for (name, expected), found in zip(plain.named_buffers(), block.buffers()):
        assert torch.equal(found, expected), name
    assert block[1].num_batches_tracked == 2 and block[1].momentum == momentum
    assert not torch.equal(block[1].running_mean, torch.zeros(4))


def test_several_passes_before_one_backward_pass():
    plain, block = make_block(), make_block()
    run = checkpointed(block, block)
    for forward in (plain, run):
        torch.manual_seed(5)
        (forward(batch(1)).sum() + forward(batch(2)).pow(2).sum()).backward()
    for expected, found in zip(plain.parameters(), block.parameters()):
        torch.testing.assert_close(found.grad, expected.grad)
    for expected, found in zip(plain.buffers(), block.buffers()):
        assert torch.equal(found, expected)


def test_norms_without_running_statistics():
    block = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    value, grad = train_step(checkpointed(block, block), batch(1))
    expected_value, expected_grad = train_step(block, batch(1))
    assert torch.equal(value, expected_value) and torch.equal(grad, expected_grad)


def test_momentum_is_back_after_an_error_in_the_second_pass():
    norm = nn.BatchNorm2d(2)
    passes: List[int] = []

    def fail_later(x: Tensor) -> Tensor:
        passes.append(len(passes))
        y = norm(x).sin()
        if len(passes) == 2:
            raise RuntimeError("second pass")
        return y.sin()

    x = batch(1).requires_grad_()
    with pytest.raises(RuntimeError, match="second pass"):
        checkpointed(fail_later, norm)(x).sum().backward()
    assert norm.momentum == 0.1 and norm.num_batches_tracked == 1


def test_without_gradients_it_is_the_function_itself():
    block = make_block()
    calls: List[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return block(x)

    with torch.no_grad():
        value = checkpointed(counted, block.eval())(batch(1))
        assert torch.equal(value, block(batch(1)))
    assert len(calls) == 1 and not value.requires_grad


def test_lists_of_tensors_get_their_gradients():
    linear = nn.Linear(3, 1, bias=False)
    maps = [torch.ones(2, 3, requires_grad=True), torch.full((1, 3), 2.0, requires_grad=True)]

    def function(scale: float, given: List[Tensor], no_grad: Tensor) -> Tensor:
        return scale * sum(linear(x).sum() for x in given) + no_grad.sum()

    value = checkpointed(function, linear)(4.0, maps, torch.ones(2))
    value.backward()
    for x in maps:
        torch.testing.assert_close(x.grad, 4 * linear.weight.detach().expand_as(x))
    # d/dw of 4 * w (1 + 1 + 2)
    torch.testing.assert_close(linear.weight.grad, torch.full((1, 3), 16.0))


def stored(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Numbers that wait for the backward pass."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return count


def test_activations_are_not_stored():
    block, x = make_block(), batch(1).requires_grad_()
    plain = stored(block, x)
    # Six layers keep maps of the size of the output, 3 * 4 * 6 * 6.
    assert plain >= 6 * 432
    assert stored(checkpointed(block, block), x) <= x.numel()


class Twice(nn.Module):
    """A block of two layers, as those that networks have lists of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
        self.passes = getattr(self, "passes", 0) + 1
        return factor * self.layers(x)


class Stages(nn.Module):
    """Blocks in a list of lists, a block that stands alone, a layer in a list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stages = nn.ModuleList([nn.ModuleList([Twice(), Twice()]), nn.Sequential(Twice())])
        self.neck = Twice()
        self.heads = nn.ModuleList([nn.Linear(3, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stages[0]:
            x = block(x, factor=2.0)
        return self.heads[0](self.neck(self.stages[1](x)))


def test_blocks_pass_twice_and_give_the_same_under_the_same_names():
    plain, net = Stages(), Stages()
    recompute_blocks(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3)
    for model in (plain, net):
        model(x).sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), net.parameters()):
        assert torch.equal(found.grad, expected.grad), name
    blocks = [*net.stages[0], net.stages[1][0]]
    assert [block.passes for block in blocks] == [2, 2, 2] and net.neck.passes == 1
    assert {type(m).__name__ for m in blocks} == {"Twice"}


def test_a_copy_of_recomputed_blocks_has_its_own_weights():
    net = Stages()
    recompute_blocks(net)
    twin = copy.deepcopy(net)
    nn.init.zeros_(twin.stages[0][0].layers[0].weight)
    x = torch.randn(2, 3)
    assert not torch.equal(twin(x), net(x))
    assert torch.equal(net(x), Stages()(x))


def test_a_network_without_blocks_is_an_error():
    with pytest.raises(ValueError, match="Linear has no lists of blocks"):
        recompute_blocks(nn.Linear(2, 2))


def test_batches_seen_with_frozen_statistics_leave_no_trace():
    norm = nn.BatchNorm2d(2)
    norm(batch(1))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with frozen_statistics(norm):
        found = norm(batch(2))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    # It is still normalised by its own mean and deviation.
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    norm(batch(2))
    assert norm.num_batches_tracked == 2 and norm.momentum == 0.1
    assert not torch.equal(norm.running_mean, before["running_mean"])
