"""Attention from one frame to those before it (Eq. 3, 4), in blocks that alternate with intra-frame
layers.

Letters: R references, L slots, n pixels of a map, C channels of code and reduced pixels, Ck and Cv
channels of keys and values.
"""

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dual_path import AttentionDims, DualPathLayer, Exchange, Projection
from .norms import Norms

__all__ = ["InterFrameLayer", "Memory", "PositionTables", "TemporalFusion", "reference_index"]

POSITION_STD = 0.02


@dataclass
class Memory:
    """What later frames need of F frames: reduced keys and values.

    They know their place in the frame but not yet how long ago it was, so that each is projected
    once and serves while the frame grows older.

    Attributes:
        entries: one tensor per inter-frame layer, (F, Ck + Cv, L + n), codes first; only (.., L)
            if no code looks at pixels.
        valid: (F, L + n) bool, entries that do not lie on padding.
    """

    entries: List[Tensor]
    valid: Tensor

    def __len__(self) -> int:
        return len(self.valid)

    @staticmethod
    def join(memories: Sequence["Memory"]) -> "Memory":
        """The frames of all, one after the other."""
        return Memory(
            [torch.cat(layer) for layer in zip(*(m.entries for m in memories))],
            torch.cat([m.valid for m in memories]),
        )

    def select(self, index: Tensor) -> "Memory":
        """References (B, R) of B frames: entries (B, R, Ck + Cv, L + n), valid (B, R, L + n)."""
        return Memory([entry[index] for entry in self.entries], self.valid[index])


def reference_index(position: int, num_refs: int) -> List[int]:
    """Positions of the frames before ``position``, nearest first, none below 0.

    Missing frames are filled with the oldest; frame 0 refers to itself.
    """
    return [max(position - age, 0) for age in range(1, num_refs + 1)]


class PositionTables(nn.Module):
    """Learned positions: of each slot and of each pixel, in time (0 is now) and in the frame.

    Args:
        num_refs: R; ages 1 to R.
        num_slots: L.
        channels: C.
        grid: cells of the side of the table of places.
    """

    def __init__(self, *, num_refs: int, num_slots: int, channels: int, grid: int) -> None:
        super().__init__()
        self.code = _table(num_refs + 1, channels, num_slots)
        self.time = _table(num_refs + 1, channels)
        self.space = _table(channels, grid, grid)

    def place(self, shape: Tuple[int, int]) -> Tensor:
        """Positions in a map of ``shape``, (1, C, h, w).

        A smaller map takes the upper left corner: more padding then leaves all positions alone.
        """
        table, side = self.space[None], self.space.shape[-1]
        wanted = [max(side, n) for n in shape]
        if wanted != [side, side]:
            table = F.interpolate(table, size=wanted, mode="bicubic", align_corners=True)
        return table[..., : shape[0], : shape[1]]


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=POSITION_STD))


class InterFrameLayer(nn.Module):
    """Code and pixels of a frame look at codes and pixels of its references.

    Args:
        channels: of the pixel map.
        dims: widths.
        norms: makes normalisations.
        drop_path: probability that a sample goes without a branch.
        to_code: the code looks at codes and pixels.
        to_pixels: the pixels look at codes.
    """

    def __init__(
        self,
        *,
        channels: int,
        dims: AttentionDims,
        norms: Norms,
        drop_path: float,
        to_code: bool = True,
        to_pixels: bool = True,
    ) -> None:
        super().__init__()
        self.key_dim = dims.key
        code, inner = dims.code, dims.code
        # Of the frame itself and of its references: batch statistics of the two differ.
        if to_code:
            self.code_in = Projection(code, code, norms)
            self.code_query = Projection(code, dims.key, norms)
            self.ref_pixel_in = Projection(channels, inner, norms)
            self.pixel_key = Projection(inner, dims.key, norms)
            self.pixel_value = Projection(inner, dims.value, norms)
        if to_pixels:
            self.pixel_in = Projection(channels, inner, norms)
            self.pixel_query = Projection(inner, dims.key, norms)
        self.ref_code_in = Projection(code, code, norms)
        self.code_key = Projection(code, dims.key, norms)
        self.code_value = Projection(code, dims.value, norms)
        self.exchange = Exchange(
            channels=channels,
            dims=dims,
            norms=norms,
            drop_path=drop_path,
            to_code=to_code,
            to_pixels=to_pixels,
        )
        self.to_code, self.to_pixels = to_code, to_pixels

    def remember(self, pixels: Tensor, code: Tensor, tables: PositionTables) -> Tensor:
        """Keys and values of F frames before their normalisation, see ``Memory.entries``.

        Args:
            pixels: (F, C', h, w).
            code: (F, C, L, 1).
            tables: positions; how old the frames are is added later, which is legal because
                nothing but a linear map has happened by then.
        """
        reduced = F.relu(self.ref_code_in(code))
        entries = [_both(self.code_key, self.code_value, reduced)]
        if self.to_code:
            reduced = F.relu(self.ref_pixel_in(pixels)) + tables.place(pixels.shape[-2:])
            entries.append(_both(self.pixel_key, self.pixel_value, reduced))
        # (F, Ck + Cv, L) and (F, Ck + Cv, n) -> (F, Ck + Cv, L + n)
        return torch.cat(entries, dim=2)

    def forward(
        self, pixels: Tensor, code: Tensor, entries: Tensor, valid: Tensor, tables: PositionTables
    ) -> Tuple[Tensor, Tensor]:
        """Update a frame from its references.

        Args:
            pixels: (B, C', h, w).
            code: (B, C, L, 1).
            entries: (B, R, Ck + Cv, L + n) of the references, nearest first.
            valid: (B, R, L + n) bool.
            tables: positions.

        Returns:
            Pixels and code in the same shapes.
        """
        keys, values = self._code_entries(entries, code.shape[2], tables)
        new_pixels, new_code = pixels, code
        if self.to_pixels:
            place = tables.place(pixels.shape[-2:]) + tables.time[0][:, None, None]
            query = self.pixel_query(F.relu(self.pixel_in(pixels)) + place).flatten(2)
            new_pixels = self.exchange.update_pixels(
                pixels, query, keys.flatten(2), values.flatten(2)
            )
        if self.to_code:
            query = F.relu(self.code_in(code)) + tables.code[0][..., None]
            query = self.code_query(query).flatten(2)  # (B, Ck, L, 1) -> (B, Ck, L)
            pixel_keys, pixel_values = self._pixel_entries(entries, code.shape[2], tables)
            # (B, C, R, L) and (B, C, R, n) -> (B, C, R * (L + n)): one softmax over all of them
            keys = torch.cat([keys, pixel_keys], dim=3).flatten(2)
            values = torch.cat([values, pixel_values], dim=3).flatten(2)
            seen = valid.flatten(1)
            new_code = self.exchange.update_code(code, query, keys, values, seen)
        return new_pixels, new_code

    def _code_entries(
        self, entries: Tensor, num_slots: int, tables: PositionTables
    ) -> Tuple[Tensor, Tensor]:
        """Keys (B, Ck, R, L) and values (B, Cv, R, L) of the references' codes."""
        age = tables.code[1:, :, :, None]  # (R, C, L, 1)
        return self._aged(entries[..., :num_slots], age, self.code_key, self.code_value)

    def _pixel_entries(
        self, entries: Tensor, num_slots: int, tables: PositionTables
    ) -> Tuple[Tensor, Tensor]:
        """Keys (B, Ck, R, n) and values (B, Cv, R, n) of the references' pixels."""
        age = tables.time[1:, :, None, None]  # (R, C, 1, 1)
        return self._aged(entries[..., num_slots:], age, self.pixel_key, self.pixel_value)

    def _aged(
        self, entries: Tensor, age: Tensor, key: Projection, value: Projection
    ) -> Tuple[Tensor, Tensor]:
        entries = entries + _both(key, value, age)  # + (R, Ck + Cv, L or 1)
        keys, values = entries.split([self.key_dim, entries.shape[2] - self.key_dim], dim=2)
        # (B, R, C, k) -> (B, C, R, k), a map of R lines for the normalisation
        return key.norm(keys.transpose(1, 2)), value.norm(values.transpose(1, 2))


def _both(key: Projection, value: Projection, x: Tensor) -> Tensor:
    """Projected without normalisation: (F, C, h, w) -> (F, Ck + Cv, h * w)."""
    return torch.cat([key.conv(x), value.conv(x)], dim=1).flatten(2)


class TemporalFusion(nn.Module):
    """Blocks of an inter-frame and an intra-frame layer.

    References always come as they were encoded by themselves, in every block.

    Args:
        inter: the inter-frame layers; None: there is no attention to other frames.
        intra: the intra-frame layers, as many.
        tables: positions; None without inter-frame layers.
        num_refs: R.
    """

    def __init__(
        self,
        *,
        inter: Optional[Sequence[InterFrameLayer]],
        intra: Sequence[DualPathLayer],
        tables: Optional[PositionTables],
        num_refs: int,
    ) -> None:
        super().__init__()
        self.inter = nn.ModuleList(inter or ())
        self.intra = nn.ModuleList(intra)
        self.tables = tables
        self.num_refs = num_refs

    def remember(self, pixels: Tensor, code: Tensor, valid: Tensor) -> Memory:
        """What later frames need of F encoded frames.

        Args:
            pixels: (F, C', h, w).
            code: (F, C, L, 1).
            valid: (F, h, w) bool, False for padding.
        """
        seen = torch.cat([valid.new_ones(len(valid), code.shape[2]), valid.flatten(1)], dim=1)
        entries = [layer.remember(pixels, code, self.tables) for layer in self.inter]
        return Memory(entries, seen)

    def forward(
        self, pixels: Tensor, code: Tensor, valid: Tensor, references: Memory
    ) -> Tuple[Tensor, Tensor]:
        """Fuse B frames with their references.

        Args:
            pixels: (B, C', h, w).
            code: (B, C, L, 1).
            valid: (B, h, w) bool, False for padding.
            references: of ``Memory.select``, R for each frame, nearest first.

        Returns:
            Pixels and code in the same shapes.
        """
        for i, layer in enumerate(self.intra):
            if self.inter:
                arguments: List[Any] = [references.entries[i], references.valid, self.tables]
                pixels, code = self.inter[i](pixels, code, *arguments)
            pixels, code = layer(pixels, code, valid)
        return pixels, code
