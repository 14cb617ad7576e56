"""One optimizer for every system; what differs is a table of parameter groups in the config."""

import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

__all__ = ["build_optimizer"]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_RULE_KEYS = {"match", "lr", "weight_decay", "betas", "clip"}
Group = Dict[str, Any]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` with detectron2's rules for norms and biases, and our groups.

    A row of ``SOLVER.PARAM_GROUPS`` speaks for every parameter whose full name contains its
    regular expression ``match`` and that no earlier row took. ``lr`` multiplies the learning rate,
    ``weight_decay`` and ``betas`` replace the default, ``clip`` bounds the gradient norm of all
    parameters of the row together. ``SOLVER.CLIP_GRADIENTS`` applies to the parameters whose row
    has no ``clip``: CLIP_TYPE "value" and "norm" per parameter, as in detectron2, "full_model" over
    all of them together.

    Args:
        cfg: a config with detectron2's and our SOLVER keys.
        model: its trainable parameters are optimized, each once.

    Returns:
        An optimizer whose ``step`` clips first.

    Raises:
        ValueError: unknown optimizer, unknown key in a row, or a row that matches no parameter.
    """
    name = cfg.SOLVER.OPTIMIZER
    rules = [dict(rule) for rule in cfg.SOLVER.PARAM_GROUPS]
    _check_rules(rules, model, name)
    groups = _merge_groups(_parameter_settings(cfg, model, rules))
    extra: Dict[str, Any] = {"fused": True} if cfg.SOLVER.FUSED else {}  # False is no default
    if name == "SGD":
        extra.update(momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV)
        return _with_clipping(torch.optim.SGD, _make_clipper(cfg))(groups, **extra)
    return _with_clipping(torch.optim.AdamW, _make_clipper(cfg))(groups, **extra)


def _check_rules(rules: List[Dict[str, Any]], model: nn.Module, optimizer: str) -> None:
    if optimizer not in ("SGD", "AdamW"):
        raise ValueError(f"SOLVER.OPTIMIZER must be 'SGD' or 'AdamW', not {optimizer!r}")
    names = [name for name, _ in model.named_parameters()]
    for rule in rules:
        unknown = set(rule) - _RULE_KEYS
        if unknown or "match" not in rule:
            raise ValueError(
                f"SOLVER.PARAM_GROUPS: a row needs 'match' and may have {sorted(_RULE_KEYS)},"
                f" but this one is {rule}"
            )
        if "betas" in rule and optimizer == "SGD":
            raise ValueError(f"SOLVER.PARAM_GROUPS: SGD has no betas, but a row has: {rule}")
        if not any(re.search(rule["match"], name) for name in names):
            raise ValueError(f"SOLVER.PARAM_GROUPS: no parameter matches {rule['match']!r}")


def _parameter_settings(
    cfg: CfgNode, model: nn.Module, rules: List[Dict[str, Any]]
) -> Iterator[Tuple[nn.Parameter, Group]]:
    """Yield each trainable parameter once, with the settings that apply to it."""
    solver = cfg.SOLVER
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
            if isinstance(module, _NORMS) and solver.WEIGHT_DECAY_NORM is not None:
                settings["weight_decay"] = solver.WEIGHT_DECAY_NORM
            if name == "bias":
                settings["lr"] *= solver.BIAS_LR_FACTOR
                if solver.WEIGHT_DECAY_BIAS is not None:
                    settings["weight_decay"] = solver.WEIGHT_DECAY_BIAS
            _apply_rules(settings, f"{prefix}.{name}" if prefix else name, rules)
            yield parameter, settings


def _apply_rules(settings: Group, name: str, rules: List[Dict[str, Any]]) -> None:
    # "clip" and "row" stay in the optimizer's groups, where the clipper finds them.
    settings.update(clip=None, row=-1)
    for row, rule in enumerate(rules):
        if not re.search(rule["match"], name):
            continue
        settings["lr"] *= rule.get("lr", 1.0)
        settings["weight_decay"] = rule.get("weight_decay", settings["weight_decay"])
        settings.update(clip=rule.get("clip"), row=row)
        if "betas" in rule:
            settings["betas"] = tuple(rule["betas"])
        return


def _merge_groups(settings: Iterator[Tuple[nn.Parameter, Group]]) -> List[Group]:
    """One group per distinct setting: torch updates the parameters of a group in one call."""
    groups: Dict[Tuple, Group] = {}
    for parameter, setting in settings:
        key = tuple(sorted(setting.items(), key=lambda item: item[0]))
        groups.setdefault(key, {"params": [], **setting})["params"].append(parameter)
    return list(groups.values())


def _make_clipper(cfg: CfgNode) -> Callable[[List[Group]], None]:
    """The function that clips the gradients of all groups, in place."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in ("value", "norm", "full_model"):
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be 'value', 'norm' or 'full_model',"
            f" not {clip.CLIP_TYPE!r}"
        )

    def clip_default(parameters: List[nn.Parameter]) -> None:
        if clip.CLIP_TYPE == "value":
            clip_grad_value_(parameters, clip.CLIP_VALUE)
        elif clip.CLIP_TYPE == "full_model":
            clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
        else:
            for parameter in parameters:
                clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    def clip_groups(groups: List[Group]) -> None:
        rows: Dict[Optional[Tuple[int, float]], List[nn.Parameter]] = {}
        for group in groups:
            key = None if group["clip"] is None else (group["row"], group["clip"])
            rows.setdefault(key, []).extend(group["params"])
        for key, parameters in rows.items():
            if key is not None:
                clip_grad_norm_(parameters, key[1])
            elif clip.ENABLED:
                clip_default(parameters)

    return clip_groups


def _with_clipping(
    base: Type[torch.optim.Optimizer], clip: Callable[[List[Group]], None]
) -> Type[torch.optim.Optimizer]:
    """``base`` with a ``step`` that clips first, so that any training loop clips."""

    class ClippingOptimizer(base):
        def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:
            clip(self.param_groups)
            return super().step(closure)

    return ClippingOptimizer
