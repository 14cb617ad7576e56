"""Data sets. Importing this package registers the built-in ones."""

from .builtin import register_builtin
from .ytvis import load_ytvis_json, register_ytvis_instances

register_builtin()

__all__ = ["load_ytvis_json", "register_ytvis_instances"]
