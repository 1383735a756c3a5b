"""What is left of a machine's memory, on machines made of files."""

import pytest
import torch

from adjointdeis.gradients.free_memory import free_bytes

CPU = torch.device("cpu")
GiB = 2**30


def machine(root, **files: str):
    """A root folder with files, whose names have two underscores for each slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def bare(tmp_path):
    return machine(
        tmp_path,
        proc__meminfo=f"MemTotal: {64 * 2**20} kB\nMemAvailable:   {16 * 2**20} kB\nX: 1\n",
    )


def group(root, path: str, limit: str, used: int, inactive: int, version: str = "v2") -> None:
    folder = root / "sys/fs/cgroup" / ("memory" if version == "v1" else "") / path
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "v2": ("memory.max", "memory.current", "inactive_file"),
        "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\n")


def test_this_machine_has_some() -> None:
    assert 2**20 < free_bytes(CPU) < 2**50


def test_a_machine_without_groups_has_what_the_system_says(bare) -> None:
    assert free_bytes(CPU, bare) == 16 * GiB


def test_a_system_that_does_not_say_counts_as_a_laptop(tmp_path) -> None:
    assert free_bytes(CPU, tmp_path) == 4 * GiB


def test_a_group_leaves_its_limit_less_what_is_in_use_and_not_given_up(bare) -> None:
    machine(bare, proc__self__cgroup="0::/job/step\n")
    group(bare, "job/step", str(8 * GiB), 3 * GiB, GiB)
    assert free_bytes(CPU, bare) == 6 * GiB


def test_the_tightest_group_on_the_way_up_counts(bare) -> None:
    machine(bare, proc__self__cgroup="0::/job/step\n")
    group(bare, "job/step", "max", GiB, 0)
    group(bare, "job", str(4 * GiB), GiB, 0)
    group(bare, "", str(12 * GiB), GiB, 0)
    assert free_bytes(CPU, bare) == 3 * GiB


def test_in_a_container_the_group_lies_at_the_top(bare) -> None:
    machine(bare, proc__self__cgroup="0::/docker/0123abc\n")
    group(bare, "", str(2 * GiB), GiB, 0)
    assert free_bytes(CPU, bare) == GiB


def test_the_first_version_of_groups(bare) -> None:
    machine(bare, proc__self__cgroup="3:cpu,cpuacct:/slurm/job\n5:memory:/slurm/job\n")
    group(bare, "slurm/job", str(8 * GiB), 2 * GiB, GiB, version="v1")
    assert free_bytes(CPU, bare) == 7 * GiB


def test_an_exhausted_group_leaves_nothing(bare) -> None:
    machine(bare, proc__self__cgroup="0::/\n")
    group(bare, "", str(GiB), 2 * GiB, 0)
    assert free_bytes(CPU, bare) == 0


def test_a_gpu_has_what_the_driver_and_torch_have_left(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GiB, 80 * GiB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GiB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GiB)
    assert free_bytes(torch.device("cuda")) == 7 * GiB
