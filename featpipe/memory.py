"""How much memory this process may still take."""

from __future__ import annotations

import multiprocessing
import os


def available_memory() -> int:
    """Return the bytes of memory that this process may still take: the system's, or its control group's."""
    system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        system = int(lines["MemAvailable"].split()[0]) * 1024
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            group = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
    except (OSError, KeyError):
        return system
    return system if group == "max" else min(system, int(group) - used)


def memory_sharers() -> int:
    """Return how many processes share the memory: all processors' worth in a worker, one otherwise."""
    return (os.cpu_count() or 1) if multiprocessing.parent_process() is not None else 1
