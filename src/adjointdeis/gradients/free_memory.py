"""How many bytes a device has left for this process: what an automatic budget is a share of."""

from collections.abc import Iterator
from pathlib import Path

import torch

_UNKNOWN = 4 * 2**30  # a laptop's, where the system does not say
# Files of a control group: its limit, what it uses, and the part of it that is given up on demand.
_VERSIONS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that could still be allocated.

    On CUDA what the driver has left and what torch holds in reserve. On a CPU the memory that the
    system can give without swapping, or what is left of the control groups' limits where those
    are lower, as in a container or a SLURM job.

    Args:
        device: CPU or CUDA; another one is taken for a CPU, whose memory it shares.
        root: Where proc and sys are mounted.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    rooms = [*_available(root / "proc" / "meminfo"), *_left_in_groups(root)]
    return max(0, min(rooms, default=_UNKNOWN))


def _available(meminfo: Path) -> Iterator[int]:
    for name, value in _pairs(meminfo, ":"):
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _left_in_groups(root: Path) -> Iterator[int]:
    """What every group on the way up from this process's own has left."""
    for line in _lines(root / "proc" / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version = ""
        elif "memory" in controllers.split(","):
            version = "memory"
        else:
            continue
        top = root / "sys" / "fs" / "cgroup" / version
        own = top / path.strip().lstrip("/")
        # In a container the path is the host's, and the group's files lie at the top.
        for group in (own, *own.parents):
            if not group.is_relative_to(top):
                break
            yield from _left(group, *_VERSIONS[version])


def _left(group: Path, limit: str, used: str, inactive: str) -> Iterator[int]:
    limits, uses = _lines(group / limit), _lines(group / used)
    # "max" is no limit.
    if limits and uses and limits[0].isdecimal():
        given_up = dict(_pairs(group / "memory.stat", " ")).get(inactive, "0")
        yield int(limits[0]) - int(uses[0]) + int(given_up)


def _pairs(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        name, _, value = line.partition(separator)
        yield name, value.strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
