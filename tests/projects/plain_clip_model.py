"""The clip model of a checkpoint, as its names say, step by step and without any of our layers.

Frames without padding. Nothing here is fast.
"""

import math
from typing import List

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C, HEADS, FFN, QUERIES, POINTS, LEVELS = 32, 8, 16, 5, 4, 4


def read(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of (h, w, c) at pixels counted from the middle of the first; 0 outside."""
    h, w, _ = cells.shape
    left, top = x.floor(), y.floor()
    found = 0
    for column in (left, left + 1):
        for row in (top, top + 1):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            at = cells[row.clamp(0, h - 1).long(), column.clamp(0, w - 1).long()]
            found = found + weight[..., None] * at
    return found


class Deformable(nn.Module):
    """Deformable attention, head by head and level by level."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(C, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(C, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(C, C)
        self.output_proj = nn.Linear(C, C)
        self.output_proj_box = nn.Linear(C, C)

    def sample(self, query: Tensor, reference: Tensor, cells: Tensor, shapes: List) -> Tensor:
        """(Q, C) at (Q, 2 or 4) among (S, C)."""
        offsets = self.sampling_offsets(query).view(-1, HEADS, LEVELS, POINTS, 2)
        weights = self.attention_weights(query).view(-1, HEADS, LEVELS * POINTS).softmax(-1)
        weights = weights.view(-1, HEADS, LEVELS, POINTS)
        values = self.value_proj(cells).split([h * w for h, w in shapes])
        heads = []
        for m in range(HEADS):
            found = 0
            for level, (h, w) in enumerate(shapes):
                own = values[level].view(h, w, HEADS, -1)[:, :, m]
                move = offsets[:, m, level]
                if reference.shape[1] == 2:
                    move = move / torch.tensor([w, h])
                else:
                    move = move / POINTS * reference[:, None, 2:] * 0.5
                place = reference[:, None, :2] + move
                at = read(own, place[..., 0] * w - 0.5, place[..., 1] * h - 0.5)
                found = found + (weights[:, m, level, :, None] * at).sum(1)
            heads.append(found)
        return torch.cat(heads, 1)


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Deformable()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.linear1, self.linear2 = nn.Linear(C, FFN), nn.Linear(FFN, C)

    def forward(self, x: Tensor, pos: Tensor, grid: Tensor, shapes: List) -> Tensor:
        found = self.self_attn.sample(x + pos, grid, x, shapes)
        x = self.norm1(x + self.self_attn.output_proj(found))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross_attn = Deformable()
        for end in ("", "_box"):
            setattr(self, f"self_attn{end}", nn.MultiheadAttention(C, HEADS, batch_first=True))
            setattr(self, f"linear1{end}", nn.Linear(C, FFN))
            setattr(self, f"linear2{end}", nn.Linear(FFN, C))
            for i in (1, 2, 3):
                setattr(self, f"norm{i}{end}", nn.LayerNorm(C))
        self.time_attention_weights = nn.Linear(C, 1)

    def among(self, x: Tensor, pos: Tensor, end: str = "") -> Tensor:
        """Queries (N, C) after their attention to each other."""
        attention, norm = getattr(self, f"self_attn{end}"), getattr(self, f"norm2{end}")
        placed = (x + pos)[None]
        return norm(x + attention(placed, placed, x[None], need_weights=False)[0][0])

    def think(self, x: Tensor, end: str = "") -> Tensor:
        first, second = getattr(self, f"linear1{end}"), getattr(self, f"linear2{end}")
        return getattr(self, f"norm3{end}")(x + second(first(x).relu()))

    def forward(self, x: Tensor, boxes: List, pos: Tensor, places: List, frames: List, shapes):
        x = self.among(x, pos)
        moved, seen, weights = [], [], []
        for box, place, cells in zip(boxes, places, frames):
            box = self.among(box, pos, "_box")
            found = self.cross_attn.sample(box + pos, place, cells, shapes)
            box = self.norm1_box(box + self.cross_attn.output_proj_box(found))
            box = self.think(box, "_box")
            moved.append(box)
            seen.append(self.cross_attn.output_proj(found))
            weights.append(self.time_attention_weights(box))
        weights = torch.stack(weights).softmax(0)
        x = self.norm1(x + (weights * torch.stack(seen)).sum(0))
        return self.think(x), moved

    def image(self, x: Tensor, pos: Tensor, place: Tensor, cells: Tensor, shapes: List) -> Tensor:
        """As an image model has it: no boxes of their own."""
        x = self.among(x, pos)
        found = self.cross_attn.sample(x + pos, place, cells, shapes)
        return self.think(self.norm1(x + self.cross_attn.output_proj(found)))


class PlainMLP(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, out)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x).relu()).relu())


class Detector(nn.Module):
    """What stands below ``detr.``, but the backbone."""

    def __init__(self, in_channels: List[int], layers: int, classes: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(c, C, 1) for c in in_channels]
        convs.append(nn.Conv2d(in_channels[-1], C, 3, 2, 1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, C)) for conv in convs)
        self.transformer = nn.Module()
        self.transformer.level_embed = nn.Parameter(torch.zeros(LEVELS, C))
        self.transformer.reference_points = nn.Linear(C, 2)
        self.transformer.encoder, self.transformer.decoder = nn.Module(), nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(EncoderLayer() for _ in range(layers))
        self.transformer.decoder.layers = nn.ModuleList(DecoderLayer() for _ in range(layers))
        self.class_embed = nn.ModuleList(nn.Linear(C, classes) for _ in range(layers))
        self.bbox_embed = nn.ModuleList(PlainMLP(4) for _ in range(layers))
        self.transformer.decoder.bbox_embed = self.bbox_embed
        self.query_embed = nn.Embedding(QUERIES, 2 * C)

    def encode(self, maps: List[Tensor]):
        """Maps (T, c, h, w) to cells (S, C) of each frame, and the levels' sizes."""
        levels = [proj(x) for proj, x in zip(self.input_proj, [*maps, maps[-1]])]
        shapes = [tuple(level.shape[-2:]) for level in levels]
        pos = torch.cat(
            [place_codes(*s) + self.transformer.level_embed[i] for i, s in enumerate(shapes)]
        )
        grid = torch.tensor(
            [[(x + 0.5) / w, (y + 0.5) / h] for h, w in shapes for y in range(h) for x in range(w)]
        )
        frames = []
        for t in range(len(maps[0])):
            cells = torch.cat([level[t].flatten(1).T for level in levels])
            for layer in self.transformer.encoder.layers:
                cells = layer(cells, pos, grid, shapes)
            frames.append(cells)
        return frames, shapes

    def forward(self, maps: List[Tensor], image: bool = False):
        """Class logits (N, K), boxes (T, N, 4), places (T, N, 2) and states (N, C) per layer.

        Args:
            maps: (T, c, h, w) at strides 8, 16 and 32.
            image: as a model of single images, which has one query for objects and boxes.
        """
        frames, shapes = self.encode(maps)
        pos, x = self.query_embed.weight.split(C, dim=1)
        boxes = [x for _ in frames]
        places = [self.transformer.reference_points(pos).sigmoid() for _ in frames]
        outputs = []
        for i, layer in enumerate(self.transformer.decoder.layers):
            if image:
                x = layer.image(x, pos, places[0], frames[0], shapes)
                boxes = [x]
            else:
                x, boxes = layer(x, boxes, pos, places, frames, shapes)
            before, places = places, []
            for box, place in zip(boxes, before):
                shift = self.bbox_embed[i](box)
                place = place.clamp(1e-5, 1 - 1e-5).logit()
                known = place.shape[1]
                places.append(torch.cat([shift[:, :known] + place, shift[:, known:]], 1).sigmoid())
            looked = torch.stack([place[:, :2] for place in before])
            outputs.append((self.class_embed[i](x), torch.stack(places), looked, x))
        return outputs, frames, shapes


def place_codes(h: int, w: int) -> Tensor:
    """(h * w, C): half of the channels for y, half for x, sines and cosines by turns."""
    rows = []
    for y in range(h):
        for x in range(w):
            code = []
            for at, last in ((y, h), (x, w)):
                angle = (at + 0.5) / (last + 1e-6) * 2 * math.pi
                for k in range(C // 4):
                    turned = angle / 10000 ** (2 * k / (C // 2))
                    code += [math.sin(turned), math.cos(turned)]
            rows.append(code)
    return torch.tensor(rows)


class ClipModel(nn.Module):
    """Detector and masks."""

    def __init__(self, in_channels: List[int], layers: int, classes: int = 42) -> None:
        super().__init__()
        self.detr = Detector(in_channels, layers, classes)
        self.controller = PlainMLP(169)
        self.mask_head = nn.Module()
        widths = {"lay1": (C, C // 4), "lay2": (C // 4, 8), "lay3": (C, C), "lay4": (C, C)}
        for name, (a, b) in {**widths, "dcn": (C, C)}.items():
            setattr(self.mask_head, name, nn.Conv2d(a, b, 3, padding=1))

    def masks(self, frames: List[Tensor], shapes: List, states: Tensor, centres: Tensor) -> Tensor:
        """Logits (N, T, 2 h, 2 w) of queries (N, C) that look at (T, N, 2) pixels."""
        head, found = self.mask_head, []
        for cells, centre in zip(frames, centres):
            levels = [
                part.T.view(1, C, *s)
                for part, s in zip(cells.split([h * w for h, w in shapes]), shapes)
            ]
            x = head.lay3(levels[2]).relu()
            for conv, level in ((head.lay4, levels[1]), (head.dcn, levels[0])):
                x = conv(level + F.interpolate(x, size=level.shape[-2:])).relu()
            x = head.lay2(head.lay1(x).relu()).relu()[0]
            h, w = x.shape[1:]
            y_of, x_of = torch.meshgrid(
                8.0 * torch.arange(h) + 4, 8.0 * torch.arange(w) + 4, indexing="ij"
            )
            masks = []
            for n, numbers in enumerate(self.controller(states)):
                w0, w1, w2, b0, b1, b2 = numbers.split([80, 64, 8, 8, 8, 1])
                distance = [centre[n, 0] - x_of, centre[n, 1] - y_of]
                z = torch.cat([torch.stack(distance), x]).flatten(1)
                z = (w0.view(8, 10) @ z + b0[:, None]).relu()
                z = (w1.view(8, 8) @ z + b1[:, None]).relu()
                masks.append((w2.view(1, 8) @ z + b2[:, None]).view(1, 1, h, w))
            small = F.pad(torch.cat(masks), (0, 1, 0, 1), mode="replicate")
            large = F.interpolate(
                small, size=(2 * h + 1, 2 * w + 1), mode="bilinear", align_corners=True
            )
            found.append(F.pad(large, (1, 0, 1, 0), mode="replicate")[:, 0, : 2 * h, : 2 * w])
        return torch.stack(found, 1)
