"""Files, devices and colours; nothing of the package's own but ``compat``."""
