"""MS-STS VIS: split attention over scales and frames, one query per object of a clip."""

from .ms_sts import MSSTS

__all__ = ["MSSTS"]
