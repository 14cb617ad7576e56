"""HITF (Li et al., AAAI 2022): online instance segmentation without boxes, identity by slot."""

from .hitf import HITF

__all__ = ["HITF"]
