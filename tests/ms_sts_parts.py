"""A small network of split attention, decoder and mask branch, and what its tests need."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from vis_d2.meta_arch.ms_sts.decoder import ClipDecoder, DecoderLayer, TemporalSwitches
from vis_d2.meta_arch.ms_sts.detector import ClipDetector
from vis_d2.meta_arch.ms_sts.encoder import ClipEncoder, EncoderLayer
from vis_d2.meta_arch.ms_sts.levels import Levels
from vis_d2.meta_arch.ms_sts.split_attention import SplitAttention

C, HEADS, QUERIES, LOGITS = 32, 4, 5, 3
IN_CHANNELS = (6, 8, 10)  # at strides 8, 16 and 32
NARROW = {"channels": C, "num_heads": HEADS, "num_points": 2, "ffn_dim": 24}


def small_split(**kwargs: Any) -> SplitAttention:
    """Split attention of 8 channels whose result counts."""
    options = {"channels": C, "dim": 8, "num_heads": 2, "gate_init": 1.0, **kwargs}
    return shaken(SplitAttention(**options).eval())


def shaken(module: nn.Module, std: float = 0.2) -> nn.Module:
    """The same module with all parameters moved, zeros too, so that nothing is there by chance."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module


def small_detector(
    split: Optional[Dict[str, Any]] = None,
    temporal: Optional[TemporalSwitches] = None,
    *,
    depth: int = 2,
    dropout: float = 0.0,
    shared: bool = False,
    recompute: bool = False,
) -> ClipDetector:
    """``depth`` layers of encoder and decoder; with ``split`` options with split attention."""

    def attention() -> Optional[SplitAttention]:
        if split is None:
            return None
        return SplitAttention(**{"channels": C, "dim": 8, "num_heads": 2, "dropout": 0.0, **split})

    layer = {**NARROW, "dropout": dropout}
    encoder = ClipEncoder(
        layers=[EncoderLayer(**layer, mssts=None if shared else attention()) for _ in range(depth)],
        mssts=attention() if shared else None,
        recompute=recompute,
    )
    decoder = ClipDecoder(
        layers=[DecoderLayer(**layer, temporal=temporal) for _ in range(depth)],
        recompute=recompute,
    )
    return ClipDetector(
        in_channels=IN_CHANNELS,
        channels=C,
        encoder=encoder,
        decoder=decoder,
        num_queries=QUERIES,
        num_logits=LOGITS,
    )


def some_maps(frames: int, padded: Tuple[int, int]) -> List[torch.Tensor]:
    """Maps of a backbone, of frames of ``padded`` pixels."""
    return [
        torch.randn(frames, c, padded[0] // s, padded[1] // s)
        for c, s in zip(IN_CHANNELS, (8, 16, 32))
    ]


def levels_of(
    padded: Tuple[int, int], sizes: Optional[Sequence[Tuple[int, int]]] = None, batch: int = 1
) -> Levels:
    """Levels of frames of ``padded`` pixels, of which ``sizes`` are no padding."""
    shapes = [(padded[0] // s, padded[1] // s) for s in (8, 16, 32)]
    shapes.append(tuple((n + 1) // 2 for n in shapes[-1]))
    return Levels.of(shapes, sizes or [padded] * batch, torch.device("cpu"))
