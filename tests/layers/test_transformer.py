"""Against plain formulas and torch's own layers; what padding, batches and memory must not do."""

import copy
import math
from typing import Callable, Dict, List, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vis_d2.layers import (
    DecoderLayer,
    EncoderLayer,
    MultiheadAttention,
    TransformerDecoder,
    TransformerEncoder,
    init_xavier,
)

B, L, Q, C, HEADS, FFN = 2, 7, 5, 12, 3, 20
SIZES = {"channels": C, "num_heads": HEADS, "ffn_dim": FFN}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """``module`` with every parameter random: biases and norms start as zeros and ones."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def some_padding() -> Tensor:
    padding = torch.zeros(B, L, dtype=torch.bool)
    padding[0, 4:] = True
    padding[1, 2] = True
    return padding


# The plain formulas.


def plain_attention(
    w: Dict[str, Tensor], query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor]
) -> Tensor:
    """One head after the other, with the matrix of queries times keys."""
    c = query.shape[-1]
    q, k, v = (
        x @ w["in_proj_weight"][i * c : (i + 1) * c].T + w["in_proj_bias"][i * c : (i + 1) * c]
        for i, x in enumerate((query, key, value))
    )
    size = c // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        logits = q[..., part] @ k[..., part].mT / math.sqrt(size)
        if padding is not None:
            logits = logits.masked_fill(padding[:, None], -math.inf)
        heads.append(logits.softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ w["out_proj.weight"].T + w["out_proj.bias"]


def plain_norm(w: Dict[str, Tensor], x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / deviation * w["weight"] + w["bias"]


def plain_ffn(w: Dict[str, Tensor], x: Tensor, gelu: bool) -> Tensor:
    x = x @ w["linear1.weight"].T + w["linear1.bias"]
    x = x * (1 + torch.erf(x / math.sqrt(2))) / 2 if gelu else x.clamp(min=0)
    return x @ w["linear2.weight"].T + w["linear2.bias"]


def part(w: Dict[str, Tensor], name: str) -> Dict[str, Tensor]:
    return {k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(name + ".")}


def plain_encoder_layer(layer, x, pos, padding, gelu, pre):
    w = dict(layer.named_parameters())
    if pre:
        y = plain_norm(part(w, "norm1"), x)
        x = x + plain_attention(part(w, "self_attn"), y + pos, y + pos, y, padding)
        return x + plain_ffn(w, plain_norm(part(w, "norm2"), x), gelu)
    x = x + plain_attention(part(w, "self_attn"), x + pos, x + pos, x, padding)
    x = plain_norm(part(w, "norm1"), x)
    return plain_norm(part(w, "norm2"), x + plain_ffn(w, x, gelu))


def plain_decoder_layer(layer, x, query_pos, memory, pos, padding, gelu, pre):
    w = dict(layer.named_parameters())
    own, cross = part(w, "self_attn"), part(w, "multihead_attn")
    norms = [part(w, f"norm{i}") for i in (1, 2, 3)]
    if pre:
        y = plain_norm(norms[0], x)
        x = x + plain_attention(own, y + query_pos, y + query_pos, y, None)
        y = plain_norm(norms[1], x)
        x = x + plain_attention(cross, y + query_pos, memory + pos, memory, padding)
        return x + plain_ffn(w, plain_norm(norms[2], x), gelu)
    x = x + plain_attention(own, x + query_pos, x + query_pos, x, None)
    x = plain_norm(norms[0], x)
    x = x + plain_attention(cross, x + query_pos, memory + pos, memory, padding)
    x = plain_norm(norms[1], x)
    return plain_norm(norms[2], x + plain_ffn(w, x, gelu))


def value_and_gradients(
    function: Callable[..., Tensor], module: nn.Module, inputs: List[Tensor]
) -> Tuple[Tensor, List[Tensor]]:
    """Gradients by all inputs and parameters, of a sum with random weights."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = function(*inputs)
    loss = (value * randn(*value.shape, seed=9)).sum()
    return value.detach(), torch.autograd.grad(loss, [*inputs, *module.parameters()])


def assert_same(
    module: nn.Module, form: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor
) -> None:
    found, gradients = value_and_gradients(form, module, list(inputs))
    expected, expected_gradients = value_and_gradients(plain, module, list(inputs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients):
        assert b.abs().max() > 1e-7
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


paddings = pytest.mark.parametrize("padding", [None, some_padding()], ids=["whole", "padded"])
norm_places = pytest.mark.parametrize("pre", [False, True], ids=["post_norm", "pre_norm"])


@paddings
def test_attention_is_the_plain_formula(padding):
    attention = shaken(MultiheadAttention(channels=C, num_heads=HEADS))

    def plain(q, k, v):
        return plain_attention(dict(attention.named_parameters()), q, k, v, padding)

    inputs = [randn(B, Q, C), randn(B, L, C, seed=1), randn(B, L, C, seed=2)]
    assert_same(attention, lambda q, k, v: attention(q, k, v, padding), plain, *inputs)


@paddings
@norm_places
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer_is_the_plain_formula(padding, pre, activation):
    layer = shaken(EncoderLayer(**SIZES, dropout=0.0, activation=activation, pre_norm=pre))

    def plain(x, pos):
        return plain_encoder_layer(layer, x, pos, padding, activation == "gelu", pre)

    inputs = [randn(B, L, C), randn(B, L, C, seed=1)]
    assert_same(layer, lambda x, pos: layer(x, pos, padding), plain, *inputs)


@paddings
@norm_places
@pytest.mark.parametrize("batched", [False, True])
def test_decoder_layer_is_the_plain_formula(padding, pre, batched):
    layer = shaken(DecoderLayer(**SIZES, dropout=0.0, activation="gelu", pre_norm=pre))

    def plain(x, query_pos, memory, pos):
        return plain_decoder_layer(layer, x, query_pos, memory, pos, padding, True, pre)

    query_pos = randn(B, Q, C, seed=1) if batched else randn(Q, C, seed=1)
    inputs = [randn(B, Q, C), query_pos, randn(B, L, C, seed=2), randn(B, L, C, seed=3)]
    assert_same(layer, lambda *args: layer(*args, padding), plain, *inputs)


@norm_places
def test_layers_are_torchs_own_where_there_are_no_positions(pre):
    """A strict load: torch's layers have DETR's parameter names."""
    options = {"dim_feedforward": FFN, "dropout": 0.0, "activation": "gelu", "norm_first": pre}
    x, memory, padding = randn(B, Q, C), randn(B, L, C, seed=1), some_padding()
    ours = shaken(EncoderLayer(**SIZES, dropout=0.0, activation="gelu", pre_norm=pre))
    theirs = nn.TransformerEncoderLayer(C, HEADS, batch_first=True, **options)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(
        ours(memory, None, padding), theirs(memory, src_key_padding_mask=padding)
    )
    ours = shaken(DecoderLayer(**SIZES, dropout=0.0, activation="gelu", pre_norm=pre))
    theirs = nn.TransformerDecoderLayer(C, HEADS, batch_first=True, **options)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(
        ours(x, torch.zeros(Q, C), memory, None, padding),
        theirs(x, memory, memory_key_padding_mask=padding),
    )


def make_encoder(num_layers: int = 2, recompute: bool = False, **options) -> TransformerEncoder:
    torch.manual_seed(0)
    layers = [EncoderLayer(**{**SIZES, **options}) for _ in range(num_layers)]
    return shaken(TransformerEncoder(layers=layers, recompute=recompute))


def make_decoder(num_layers: int = 2, recompute: bool = False, **options) -> TransformerDecoder:
    torch.manual_seed(0)
    layers = [DecoderLayer(**{**SIZES, **options}) for _ in range(num_layers)]
    return shaken(TransformerDecoder(layers=layers, channels=C, recompute=recompute))


@norm_places
def test_encoder_is_its_layers_and_norms_its_output_where_they_do_not(pre):
    encoder = make_encoder(pre_norm=pre).eval()
    x, pos, padding = randn(B, L, C), randn(B, L, C, seed=1), some_padding()
    expected = x
    for layer in encoder.layers:
        expected = layer(expected, pos, padding)
    if pre:
        expected = plain_norm(part(dict(encoder.named_parameters()), "norm"), expected)
    torch.testing.assert_close(encoder(x, pos, padding), expected)
    assert any(name.startswith("norm.") for name in encoder.state_dict()) == pre


@norm_places
def test_decoder_starts_from_zeros_and_norms_every_output_alike(pre):
    decoder = make_decoder(3, pre_norm=pre).eval()
    query_pos, memory, pos = randn(Q, C), randn(B, L, C, seed=1), randn(B, L, C, seed=2)
    found = decoder(query_pos, memory, pos, some_padding())
    assert found.shape == (3, B, Q, C)
    x, norm = torch.zeros(B, Q, C), part(dict(decoder.named_parameters()), "norm")
    for output, layer in zip(found, decoder.layers):
        x = layer(x, query_pos, memory, pos, some_padding())
        torch.testing.assert_close(output, plain_norm(norm, x))


def through_both(x: Tensor, pos: Tensor, padding: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    memory = make_encoder().eval()(x, pos, padding)
    return memory, make_decoder().eval()(randn(Q, C, seed=5), memory, pos, padding)


def test_padding_changes_no_valid_output():
    x, pos, padding = randn(B, L, C), randn(B, L, C, seed=1), some_padding()
    memory, outputs = through_both(x, pos, padding)
    other, other_outputs = through_both(
        x.masked_fill(padding[..., None], 7.0), pos.masked_fill(padding[..., None], -3.0), padding
    )
    torch.testing.assert_close(memory[~padding], other[~padding])
    torch.testing.assert_close(outputs, other_outputs)
    # The same as if the padding, the last tokens of sample 0, were not there.
    alone, alone_outputs = through_both(x[:1, :4], pos[:1, :4], None)
    torch.testing.assert_close(memory[:1, :4], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[:, :1], alone_outputs, atol=1e-5, rtol=1e-5)
    # And without the mask they would count.
    assert (through_both(x, pos, None)[1] - outputs).abs().max() > 1e-2


@paddings
def test_two_samples_are_two_batches_of_one(padding):
    x, pos = randn(B, L, C), randn(B, L, C, seed=1)
    memory, outputs = through_both(x, pos, padding)
    for b in range(B):
        one = slice(b, b + 1)
        single, single_outputs = through_both(
            x[one], pos[one], None if padding is None else padding[one]
        )
        torch.testing.assert_close(memory[one], single, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outputs[:, one], single_outputs, atol=1e-5, rtol=1e-5)


def test_no_padding_is_a_mask_without_padding():
    x, pos = randn(B, L, C), randn(B, L, C, seed=1)
    nothing = torch.zeros(B, L, dtype=torch.bool)
    for found, expected in zip(through_both(x, pos, nothing), through_both(x, pos, None)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_large_model():
    with torch.device("meta"):
        sizes = {"channels": 384, "num_heads": 8, "ffn_dim": 2048}
        encoder = TransformerEncoder(layers=[EncoderLayer(**sizes) for _ in range(6)])
        layers = [DecoderLayer(**sizes) for _ in range(6)]
        decoder = TransformerDecoder(layers=layers, channels=384)
    assert count(encoder) == 13_009_152
    assert count(decoder) - count(decoder.norm) == 16_561_920
    assert count(decoder.norm) == 768


def test_parameter_names():
    names = {
        *(f"self_attn.{n}" for n in ("in_proj_weight", "in_proj_bias")),
        *(f"{m}.{n}" for n in ("weight", "bias") for m in
          ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")),
    }  # fmt: skip
    assert set(make_encoder(1).state_dict()) == {f"layers.0.{name}" for name in names}
    names |= {name.replace("self_attn", "multihead_attn") for name in names}
    names |= {"norm3.weight", "norm3.bias"}
    expected = {f"layers.0.{name}" for name in names} | {"norm.weight", "norm.bias"}
    assert set(make_decoder(1).state_dict()) == expected


def test_xavier_bounds_and_untouched_vectors():
    decoder = make_decoder(1, channels=60)
    before = copy.deepcopy(decoder.state_dict())
    torch.manual_seed(0)
    init_xavier(decoder)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() < 2:
            assert torch.equal(parameter, before[name]), name
            continue
        bound = math.sqrt(6 / sum(parameter.shape))  # fan in + fan out, the three of in_proj as one
        assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_a_fresh_attention_starts_like_torchs():
    torch.manual_seed(0)
    attention = MultiheadAttention(channels=60, num_heads=3)
    bound = math.sqrt(6 / 240)
    assert 0.9 * bound < attention.in_proj_weight.abs().max() <= bound
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()


@pytest.mark.parametrize("make", [make_encoder, make_decoder])
def test_dropout_acts_in_training_only(make):
    module = make(dropout=0.5)
    args = (randn(B, L, C),) if make is make_encoder else (randn(Q, C), randn(B, L, C, seed=1))
    assert not torch.equal(module(*args), module(*args))
    module.eval()
    assert torch.equal(module(*args), module(*args))
    torch.testing.assert_close(module(*args), make(dropout=0.0)(*args))


def test_every_place_of_dropout():
    """Attention weights and hidden units as well as branches."""
    attention = MultiheadAttention(channels=C, num_heads=HEADS, dropout=0.5)
    x = randn(1, L, C)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    layer = EncoderLayer(**SIZES, dropout=0.5)
    assert not torch.equal(layer._feed_forward(x), layer._feed_forward(x))
    # A branch that is always the same: only its sum with x can differ.
    branches = [layer._residual(x, nn.Identity(), torch.ones_like) - x for _ in range(2)]
    assert set(branches[0].round().flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(*branches)


def stored(run: Callable[[], Tensor]) -> int:
    """Bytes that wait for the backward pass, every storage once."""
    sizes: Dict[int, int] = {}
    kept: List[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # or another storage could get its address
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values())


@paddings
@pytest.mark.parametrize("make", [make_encoder, make_decoder])
def test_recomputed_layers_store_less_and_change_nothing(make, padding):
    pos, memory, queries = randn(B, L, C), randn(B, L, C, seed=1), randn(Q, C, seed=2)
    inputs = [memory, pos] if make is make_encoder else [queries, memory, pos]
    results, sizes = [], []
    for recompute in (False, True):
        module = make(4, recompute, dropout=0.3)
        torch.manual_seed(7)  # the second pass has to draw what the first drew
        results.append(value_and_gradients(lambda *x: module(*x, padding), module, inputs))  # noqa: B023
        x = [value.clone().requires_grad_() for value in inputs]
        sizes.append(stored(lambda: module(*x, padding)))  # noqa: B023
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(b, a)
    assert sizes[1] < 0.25 * sizes[0]


class LargestResult(TorchDispatchMode):
    """Bytes of the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, Tensor):
                self.size = max(self.size, value.untyped_storage().nbytes())
        return result


@paddings
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_pos", [False, True])
def test_no_matrix_of_all_pairs_of_tokens(padding, training, with_pos):
    """Not in the forward pass, nor backward; 4 bytes x heads x tokens ** 2 would be 3 MB."""
    tokens = 512
    layer = EncoderLayer(**SIZES, dropout=0.0).train(training)
    x = randn(1, tokens, C)
    pos = randn(1, tokens, C, seed=1) if with_pos else None
    mask = None if padding is None else torch.arange(tokens)[None] > 400
    with LargestResult() as largest, torch.set_grad_enabled(training):
        y = layer(x, pos, mask)
        if training:
            y.sum().backward()
    # The widest tensors a layer needs: the hidden units. Half the bytes of one head's matrix.
    assert 0 < largest.size < tokens**2 * 4 / 2


def test_half_precision():
    """The masks and queries are not in the way of autocast."""
    x, pos, padding = randn(B, L, C), randn(B, L, C, seed=1), some_padding()
    memory, outputs = through_both(x, pos, padding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_memory, low_outputs = through_both(x, pos, padding)
    torch.testing.assert_close(low_memory.float(), memory, atol=0.15, rtol=0.1)
    torch.testing.assert_close(low_outputs.float(), outputs, atol=0.3, rtol=0.1)


def test_a_copy_has_its_own_layers():
    encoder = make_encoder(recompute=True).eval()
    twin = copy.deepcopy(encoder)
    x, before = randn(B, L, C), encoder(randn(B, L, C))
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(encoder(x), before) and not twin(x).any()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: EncoderLayer(channels=10, num_heads=3, ffn_dim=4), "10 channels .* 3 heads"),
        (lambda: DecoderLayer(**SIZES, activation="tanh"), "activation is 'tanh'"),
        (lambda: TransformerEncoder(layers=[]), "0 layers with 0 kinds of norm"),
        (
            lambda: TransformerEncoder(
                layers=[EncoderLayer(**SIZES), EncoderLayer(**SIZES, pre_norm=True)]
            ),
            "2 layers with 2 kinds of norm, expected 1",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
