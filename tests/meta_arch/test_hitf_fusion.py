"""Attention to earlier frames: one softmax over all of them, positions in time, and reuse."""

import pytest
import torch
from hitf_parts import BN, DIMS, LN, awake

from vis_d2.meta_arch.hitf.dual_path import DualPathLayer
from vis_d2.meta_arch.hitf.fusion import (
    InterFrameLayer,
    Memory,
    PositionTables,
    TemporalFusion,
)

L, H, W, R = 3, 2, 4, 3
CELLS = H * W


def tables(grid=4) -> PositionTables:
    return PositionTables(num_refs=R, num_slots=L, channels=8, grid=grid)


def fusion(norms=LN, depth=2, **switches) -> TemporalFusion:
    torch.manual_seed(0)
    shared = {"channels": 10, "dims": DIMS, "norms": norms, "drop_path": 0.0}
    inter = [InterFrameLayer(**shared, **switches) for _ in range(depth)]
    intra = [DualPathLayer(**shared) for _ in range(depth)]
    return TemporalFusion(inter=inter, intra=intra, tables=tables(), num_refs=R)


def frames(count):
    torch.manual_seed(1)
    valid = torch.ones(count, H, W, dtype=torch.bool)
    valid[..., 3] = False
    return torch.rand(count, 10, H, W), torch.rand(count, 8, L, 1), valid


def fuse(module, index, target=3):
    """Frame ``target`` with the references ``index``, nearest first."""
    pixels, code, valid = frames(4)
    memory = module.remember(pixels, code, valid).select(torch.tensor([index]))
    at = slice(target, target + 1)
    return module(pixels[at], code[at], valid[at], memory)


def close(a, b):
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b))


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_permuting_references_with_their_time_changes_nothing(norms):
    module = awake(fusion(norms))
    before = fuse(module, [2, 1, 0])
    assert not close(before, fuse(module, [0, 2, 1]))
    order = torch.tensor([0, 3, 1, 2])  # age 1 is now age 2, and so on; 0 is the frame itself
    for table in (module.tables.code, module.tables.time):
        table.data = table.data[order]
    assert close(before, fuse(module, [0, 2, 1]))


def test_each_of_the_positions_matters():
    for name in ("code", "time", "space"):
        module = awake(fusion())
        before = fuse(module, [2, 1, 0])
        table = getattr(module.tables, name).data
        table[0] += torch.randn_like(table[0])  # now, or the first channel of places
        assert not close(before, fuse(module, [2, 1, 0])), name


def test_one_softmax_over_all_references():
    module, seen = awake(fusion(depth=1)), []
    exchange = module.inter[0].exchange
    exchange.code_retrieval.register_forward_hook(lambda m, args, out: seen.append(args))
    exchange.pixel_retrieval.register_forward_hook(lambda m, args, out: seen.append(args))
    fuse(module, [2, 1, 0])
    (p_query, p_keys, p_values), (query, keys, values, valid) = seen
    assert query.shape == (1, 4, L) and p_query.shape == (1, 4, CELLS)
    assert keys.shape == (1, 4, R * (L + CELLS)) and values.shape == (1, 8, R * (L + CELLS))
    assert p_keys.shape == (1, 4, R * L) and p_values.shape == (1, 8, R * L)


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_keys_and_values_are_those_of_the_formula(norms):
    """Projected with place and age added first; the memory adds the age later."""
    module, seen = awake(fusion(norms, depth=1)), []
    layer = module.inter[0]
    layer.exchange.code_retrieval.register_forward_hook(lambda m, args, out: seen.append(args))
    fuse(module, [2, 0, 0])
    pixels, code, valid = frames(4)
    positions = module.tables
    code_part, pixel_part = [], []
    for age, frame in ((1, 2), (2, 0), (3, 0)):
        x = layer.ref_code_in(code[[frame]]).relu() + positions.code[age][None, :, :, None]
        code_part.append(layer.code_key(x).flatten(2))
        y = layer.ref_pixel_in(pixels[[frame]]).relu() + positions.time[age][None, :, None, None]
        y = y + positions.space[None, :, :H, :W]
        pixel_part.append(layer.pixel_key(y).flatten(2))
    _, keys, _, seen_valid = seen[0]
    by_frame = torch.cat([torch.stack(code_part, 2), torch.stack(pixel_part, 2)], dim=3)
    torch.testing.assert_close(keys, by_frame.flatten(2), atol=1e-5, rtol=1e-4)
    expected = torch.cat([torch.ones(4, L, dtype=torch.bool), valid.flatten(1)], dim=1)
    assert torch.equal(seen_valid, expected[[2, 0, 0]].flatten()[None])


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_padding_of_references_is_never_looked_at(norms):
    module = awake(fusion(norms))
    pixels, code, valid = frames(4)

    def run():
        memory = module.remember(pixels[:3], code[:3], valid[:3])
        memory = memory.select(torch.tensor([[2, 1, 0]]))
        return module(pixels[3:], code[3:], valid[3:], memory)

    before = run()
    pixels[:3, ..., 3] = 100.0
    assert close(before, run())


def test_pixels_attend_to_codes_only_and_codes_to_both():
    pixels, code, valid = frames(4)
    for switches, by_code, by_pixels in (
        ({"to_code": False}, (True, False), (False, False)),
        ({"to_pixels": False}, (False, True), (False, True)),
    ):
        module = awake(fusion(depth=1, **switches)).inter[0]
        positions = awake(tables())

        def run(ref_pixels, ref_code, module=module, positions=positions):
            entries = module.remember(ref_pixels, ref_code, positions)[None]
            seen = torch.ones(entries.shape[:2] + entries.shape[3:], dtype=torch.bool)
            return module(pixels[3:], code[3:], entries, seen, positions)

        base = run(pixels[:3], code[:3])
        for changed, expected in (
            (run(pixels[:3], code[:3] + 1), by_code),
            (run(pixels[:3] + 1, code[:3]), by_pixels),
        ):
            moved = tuple(not torch.allclose(a, b, atol=1e-5) for a, b in zip(base, changed))
            assert moved == expected


def test_memory_of_frames_joins_and_selects():
    module = awake(fusion())
    pixels, code, valid = frames(4)
    whole = module.remember(pixels, code, valid)
    parts = [
        module.remember(pixels[i : i + 1], code[i : i + 1], valid[i : i + 1]) for i in range(4)
    ]
    again = Memory.join(parts)
    assert len(again) == 4 and len(again.entries) == 2
    for a, b in zip(whole.entries, again.entries):
        torch.testing.assert_close(a, b)
    picked = whole.select(torch.tensor([[3, 1, 1], [0, 0, 2]]))
    assert torch.equal(picked.entries[0][1, 2], whole.entries[0][2])
    assert torch.equal(picked.valid[0, 0], whole.valid[3])


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_new_blocks_change_nothing(norms):
    pixels, code, _ = frames(4)
    new_pixels, new_code = fuse(fusion(norms).eval(), [2, 1, 0])
    assert torch.equal(new_pixels, pixels[3:]) and torch.equal(new_code, code[3:])


def test_without_attention_to_other_frames():
    shared = {"channels": 10, "dims": DIMS, "norms": LN, "drop_path": 0.0}
    module = TemporalFusion(inter=None, intra=[DualPathLayer(**shared)], tables=None, num_refs=R)
    awake(module)
    assert close(fuse(module, [2, 1, 0]), fuse(module, [0, 0, 0]))


def test_places_are_a_corner_of_the_table_or_its_enlargement():
    positions = awake(tables(grid=4))
    table = positions.space
    assert torch.equal(positions.place((2, 3))[0], table[:, :2, :3])
    large = positions.place((7, 4))
    assert large.shape == (1, 8, 7, 4)
    torch.testing.assert_close(large[0, :, ::2], table, atol=1e-5, rtol=1e-4)  # corners aligned
