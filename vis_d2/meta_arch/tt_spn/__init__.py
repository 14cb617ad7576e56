"""TT-SPN: twin transformers and sinusoidal heads; a whole clip in one sequence of queries."""

from .tt_spn import TTSPN

__all__ = ["TTSPN"]
