"""All configuration keys of the package."""

from detectron2.config import CfgNode

from vis_d2.config import add_common_config

from .efficient_vis.config import add_efficient_vis_config
from .hitf.config import add_hitf_config
from .ms_sts.config import add_ms_sts_config
from .sg_net.config import add_sg_net_config
from .tt_spn.config import add_tt_spn_config

__all__ = ["add_vis_config"]


def add_vis_config(cfg: CfgNode) -> None:
    """Add the common keys and those of every system to ``cfg``, in place.

    Args:
        cfg: a config made by ``detectron2.config.get_cfg()``. Nothing of detectron2's global
            defaults changes.
    """
    add_common_config(cfg)
    add_sg_net_config(cfg)
    add_efficient_vis_config(cfg)
    add_tt_spn_config(cfg)
    add_hitf_config(cfg)
    add_ms_sts_config(cfg)
