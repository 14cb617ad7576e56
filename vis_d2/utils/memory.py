"""How much memory this process holds."""

import sys


def resident_mb() -> float:
    """Memory that is resident now, in MB (2**20 bytes); where only the peak is known, that."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:  # not Linux
        return peak_resident_mb()
    import resource

    return pages * resource.getpagesize() / 2**20


def peak_resident_mb() -> float:
    """The most that was resident since the process began, in MB; 0 where the system cannot tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, kB elsewhere
