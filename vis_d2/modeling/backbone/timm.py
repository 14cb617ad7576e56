"""Any backbone of timm that gives maps of several strides.

The classes are detectron2's; timm itself is imported where it is used, so that a machine without it
runs everything else.
"""

import difflib
import inspect
from functools import partial
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from vis_d2.layers import ChannelNorm, recompute_blocks

from .batch_norm import replace_batch_norm

__all__ = ["TimmBackbone", "build_timm_backbone"]

ANY_SIZE = {"strict_img_size": False, "dynamic_img_size": True}  # for models made for one size
MOST_LETTERS = 200  # of timm's own message in an error: it can list every weight


class TimmBackbone(Backbone):
    """A ``features_only`` model of timm: (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ...}.

    A map is called after its stride, as detectron2's ResNet calls its own: ``res{n}`` has stride
    2^n, whatever the model calls that stage. Where a model has several maps of one stride, it is
    the deepest. Maps are the stages' raw ones, without the classifier's final normalisation; with
    ``out_norm`` each has a normalisation of its own, ``out_norms.res{n}``.

    Weights are named ``body.<name>``, with the names of ``timm.create_model(name)``, except that
    timm joins the first two parts of names in its sequences of stages: ``layers.0.blocks`` of Swin
    is ``body.layers_0.blocks``, ``stages.0`` of ConvNeXt ``body.stages_0``. Names of ResNets and of
    Twins (``body.patch_embeds.{s}``, ``body.blocks.{s}.{i}``, ``body.pos_block.{s}.proj.0``) stay.

    Args:
        net: what ``timm.create_model(name, features_only=True)`` returned.
        out_features: names of the maps wanted. Empty: all that ``net`` gives.
        freeze_at: all that map ``res{freeze_at}`` depends on is frozen: no gradient, and eval mode
            (statistics, drop path) also in training. 0: nothing.
        norm: what takes the place of batch normalisation: "" or "BN" (stays), "FrozenBN", "SyncBN"
            (both keep weights and statistics) or "GN" (32 groups, starts afresh).
        recompute: recompute the blocks' activations in the backward pass instead of storing them.
        out_norm: "LN": a layer normalisation over the channels of every map, whose weights are not
            frozen with the map's and are not the classifier's. "": none.

    Raises:
        ValueError: a map, ``norm`` or ``out_norm`` that the model does not have, or no blocks to
            recompute.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        out_features: Sequence[str] = (),
        freeze_at: int = 0,
        norm: str = "",
        recompute: bool = False,
        out_norm: str = "",
    ) -> None:
        super().__init__()
        from timm.models._features import FeatureGetterNet

        info = net.feature_info
        indices = [index % len(info.info) for index in info.out_indices]
        found = {name: i for name, i in _map_names(info).items() if i in indices}
        self._out_features = list(out_features) or list(found)
        _check_maps("OUT_FEATURES", self._out_features, found)
        self._out_feature_channels = {n: info.info[i]["num_chs"] for n, i in found.items()}
        self._out_feature_strides = {n: int(info.info[i]["reduction"]) for n, i in found.items()}
        self._positions = {name: indices.index(i) for name, i in found.items()}
        # A getter keeps the model whole and one level down: its own names are the model's.
        is_getter = isinstance(net, FeatureGetterNet)
        self._getter_indices = list(net.out_indices) if is_getter else None
        self._channels_last = not is_getter and getattr(net, "output_fmt", "NCHW") == "NHWC"
        self.body = replace_batch_norm(net.model if is_getter else net, norm)
        self.out_norms = nn.ModuleDict(_map_norms(out_norm, self.output_shape()))
        self.freeze_at = freeze_at
        if freeze_at:
            _check_maps("FREEZE_AT", [f"res{freeze_at}"], found)
            self._freeze(f"res{freeze_at}")
        if recompute:
            recompute_blocks(self.body)
        self.train()

    @property
    def size_divisibility(self) -> int:
        """Largest stride: maps of inputs padded to it have exactly H/stride x W/stride cells."""
        return max(self._out_feature_strides[name] for name in self._out_features)

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """(B, 3, H, W) -> the maps (B, C, h, w) by name."""
        maps = self._maps(x)
        for name, norm in self.out_norms.items():
            maps[name] = norm(maps[name]).contiguous()  # (B, C, h, w)
        return {name: maps[name] for name in self._out_features}

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        for module in self.body.modules() if mode and self.freeze_at else ():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    def _maps(self, x: Tensor) -> Dict[str, Tensor]:
        if self._getter_indices is None:
            maps = self.body(x)
        else:
            maps = self.body.forward_intermediates(
                x, indices=self._getter_indices, output_fmt="NCHW", intermediates_only=True
            )
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]  # (B, h, w, C): (B, C, h, w)
        return {name: maps[i] for name, i in self._positions.items()}

    def _freeze(self, name: str) -> None:
        # What a map depends on is asked of autograd: timm has no common names for stages.
        self.eval()  # batch statistics of the probe must not count
        parameters = list(self.parameters())
        channels = next(p for p in parameters if p.ndim == 4).shape[1]
        side = 2 * max(self._out_feature_strides.values())
        with torch.enable_grad():
            probe = self._maps(parameters[0].new_zeros(1, channels, side, side))[name]
            gradients = torch.autograd.grad(probe.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            parameter.requires_grad_(gradient is None)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The backbone that ``MODEL.TIMM`` describes.

    Called by ``build_backbone(cfg)`` when it is named in ``MODEL.BACKBONE.NAME``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, cannot build it or cannot get its weights; or a value
            does not fit the model. The message names the key.
    """
    node = cfg.MODEL.TIMM
    weights: Optional[Dict[str, Any]] = {"pretrained": True} if node.PRETRAINED else None
    if node.WEIGHTS_FILE:
        if not node.WEIGHTS_FILE.endswith(".safetensors"):  # the format that cannot run code
            message = f"expected a .safetensors file of timm, found {node.WEIGHTS_FILE!r}"
            raise ValueError(f"MODEL.TIMM.WEIGHTS_FILE: {message}")
        # Naming no classifier makes timm load strictly, the classifier of the file included.
        source = {"file": node.WEIGHTS_FILE, "classifier": None, "custom_load": False}
        weights = {"pretrained": True, "pretrained_cfg_overlay": source}
    options = _model_options(node.NAME, node.DROP_PATH, input_shape.channels)
    options.update(node.ARGS)
    return TimmBackbone(
        net=_create(node.NAME, node.OUT_FEATURES, options, weights),
        out_features=node.OUT_FEATURES,
        freeze_at=node.FREEZE_AT,
        norm=node.NORM,
        recompute=node.RECOMPUTE,
        out_norm=node.OUT_NORM,
    )


def _model_options(name: str, drop_path: float, channels: int) -> Dict[str, Any]:
    """Arguments of ``create_model``; what not every model takes is asked of its signature."""
    import timm

    base = name.partition(".")[0]  # the rest is the tag of the weights
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no model {name!r}{hint}")
    model_class = inspect.signature(timm.models.model_entrypoint(base)).return_annotation
    accepted = inspect.signature(model_class).parameters
    options = {key: value for key, value in ANY_SIZE.items() if key in accepted}
    if not 0 <= drop_path < 1:
        raise ValueError(f"MODEL.TIMM.DROP_PATH: expected a value in [0, 1), found {drop_path}")
    if "drop_path_rate" in accepted:
        options["drop_path_rate"] = drop_path
    elif drop_path:
        raise ValueError(f"MODEL.TIMM.DROP_PATH: {name} has no drop path, expected 0")
    return {"in_chans": channels, **options}


def _create(
    name: str,
    out_features: Sequence[str],
    options: Mapping[str, Any],
    weights: Optional[Mapping[str, Any]],
) -> nn.Module:
    """The model, without the stages that no wanted map needs."""
    import timm

    create = partial(timm.create_model, name, features_only=True, **options)
    try:
        net = create()
    except Exception as error:  # whatever the model's own code trips over
        message = f"{name} cannot be built with {options}: {_shortened(error)}"
        raise ValueError(f"MODEL.TIMM: {message}") from error
    names = _map_names(net.feature_info)
    _check_maps("OUT_FEATURES", out_features, names)
    last = max(names[n] for n in out_features or names)
    needed = tuple(sorted(i for i in names.values() if i <= last))
    if weights is None and tuple(net.feature_info.out_indices) == needed:
        return net
    try:
        return create(out_indices=needed, **(weights or {}))
    except Exception as error:  # no connection, no such file, no such weights, other shapes
        file = (weights or {}).get("pretrained_cfg_overlay", {}).get("file")
        key = f"WEIGHTS_FILE: {file} has" if file else "PRETRAINED:"
        raise ValueError(
            f"MODEL.TIMM.{key} no weights for {name} ({_shortened(error)}); set WEIGHTS_FILE to a"
            " .safetensors file of this model, or PRETRAINED False and use MODEL.WEIGHTS"
        ) from error


def _shortened(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ..."


def _map_names(info: Any) -> Dict[str, int]:
    """Name -> index of the stage, shallow to deep; the deepest stage of a stride has its name."""
    names = {}
    for index, stage in enumerate(info.info):
        stride = int(stage["reduction"])
        if stride & (stride - 1):
            raise ValueError(f"MODEL.TIMM.NAME: expected strides 2, 4, 8, ..., found {stride}")
        names[f"res{stride.bit_length() - 1}"] = index
    return names


def _map_norms(kind: str, shapes: Mapping[str, ShapeSpec]) -> Dict[str, nn.Module]:
    if kind not in ("", "LN"):
        raise ValueError(f"MODEL.TIMM.OUT_NORM: expected '' or 'LN', found {kind!r}")
    return {name: ChannelNorm(shape.channels) for name, shape in shapes.items() if kind}


def _check_maps(key: str, wanted: Sequence[str], names: Mapping[str, int]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"MODEL.TIMM.{key}: expected maps among {list(names)}, found {missing}")
