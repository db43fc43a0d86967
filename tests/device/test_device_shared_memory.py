"""Memory files: shared, sealed, sparse, and refused before the machine runs out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aegaeon.device.common.host_memory import HostMemory, host_memory
from aegaeon.device.common.shared_memory import SharedMemoryError, create_memfd, require_memory
from aegaeon.device.common.shared_tensor import map_fd

SIZE = 1 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    made = create_memfd("aegaeon-test", SIZE, flag="--kv-cache-bytes")
    yield made
    os.close(made)


def mapped_as() -> list[str]:
    """Protections of this process's mappings of the test's memory file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if "aegaeon-test" in line]


def test_mappings_share_their_bytes(fd: int) -> None:
    writer, reader = map_fd(fd, SIZE, writable=True), map_fd(fd, SIZE, writable=False)
    writer.view(torch.int32).copy_(torch.arange(SIZE // 4, dtype=torch.int32))
    assert torch.equal(reader.view(torch.int32), torch.arange(SIZE // 4, dtype=torch.int32))
    assert sorted(mapped_as()) == ["r--s", "rw-s"]


def test_a_mapping_goes_with_its_last_view(fd: int) -> None:
    tensor = map_fd(fd, SIZE, writable=True)
    view = tensor.view(torch.bfloat16)[100:].view(-1, 2)
    del tensor
    assert mapped_as() == ["rw-s"]
    view.fill_(1.0)
    del view
    assert mapped_as() == []


def test_a_mapping_outlives_the_descriptor() -> None:
    fd = create_memfd("aegaeon-test", SIZE, flag="--kv-cache-bytes")
    tensor = map_fd(fd, SIZE, writable=True)
    os.close(fd)
    assert tensor.fill_(3).sum().item() == 3 * SIZE


def test_another_process_writes_into_it(fd: int) -> None:
    script = "import mmap, sys; m = mmap.mmap(int(sys.argv[1]), int(sys.argv[2])); m[5] = 77; m.close()"
    subprocess.run([sys.executable, "-c", script, str(fd), str(SIZE)], pass_fds=[fd], check=True)
    assert map_fd(fd, SIZE, writable=False)[5].item() == 77


def test_its_size_is_sealed(fd: int) -> None:
    for size_bytes in (SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)


def test_memory_is_taken_when_it_is_touched_or_at_once(fd: int) -> None:
    assert os.fstat(fd).st_blocks == 0
    map_fd(fd, SIZE, writable=True)[0] = 1
    assert 0 < os.fstat(fd).st_blocks * 512 < SIZE
    prefaulted = create_memfd("aegaeon-test", SIZE, flag="--kv-cache-bytes", prefault=True)
    assert os.fstat(prefaulted).st_blocks * 512 == SIZE
    os.close(prefaulted)


def test_too_little_memory_says_how_much_where_and_which_flag() -> None:
    host = HostMemory(3 << 30, "/sys/fs/cgroup/memory.max")
    require_memory("KV cache", 3 << 30, "--kv-cache-bytes", host)
    with pytest.raises(SharedMemoryError) as caught:
        require_memory("KV cache", 4 << 30, "--kv-cache-bytes", host)
    assert str(caught.value) == (
        "KV cache needs 4.00 GiB of shared memory, but 3.00 GiB are available (says /sys/fs/cgroup/memory.max): "
        "lower --kv-cache-bytes"
    )


def test_an_impossible_file_is_refused_and_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SharedMemoryError, match=r"needs 1073741824.00 GiB .* lower --weight-cache-bytes"):
        create_memfd("weights", 1 << 60, flag="--weight-cache-bytes")
    with pytest.raises(SharedMemoryError, match="lower --weight-cache-bytes"):
        create_memfd("weights", -1, flag="--weight-cache-bytes")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("size_bytes", [SIZE + 1, 0, -1])
def test_a_mapping_stays_inside_its_file(fd: int, size_bytes: int) -> None:
    with pytest.raises(SharedMemoryError, match="memory file of 1048576: pass its real size"):
        map_fd(fd, size_bytes, writable=False)


def test_a_descriptor_that_cannot_be_mapped_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"read only")
    with path.open("rb") as file, pytest.raises(SharedMemoryError, match="cannot map"):
        map_fd(file.fileno(), 4, writable=True)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, membership: str) -> Path:
    write(root / "proc/meminfo", "MemTotal: 4000 kB\nMemFree: 10 kB\nMemAvailable:    2000 kB\n")
    write(root / "proc/self/cgroup", membership)
    return root


def group(directory: Path, limit: str, used: int, reclaimable: int) -> None:
    write(directory / "memory.max", f"{limit}\n")
    write(directory / "memory.current", f"{used}\n")
    write(directory / "memory.stat", f"anon 5\ninactive_file {reclaimable}\n")


def measure(root: Path) -> HostMemory:
    return host_memory(root / "proc", root / "cgroup")


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n")
    assert measure(tmp_path) == HostMemory(2000 * 1024, str(tmp_path / "proc/meminfo"))


def test_the_tightest_group_up_to_the_root_is_the_limit(tmp_path: Path) -> None:
    machine(tmp_path, "0::/pod/box\n")
    group(tmp_path / "cgroup/pod/box", "max", 100_000, 0)
    group(tmp_path / "cgroup/pod", "500000", 400_000, 50_000)
    group(tmp_path / "cgroup", "900000", 400_000, 0)
    assert measure(tmp_path) == HostMemory(150_000, str(tmp_path / "cgroup/pod/memory.max"))


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n")
    group(tmp_path / "cgroup", "500", 900, 0)
    assert measure(tmp_path).available_bytes == 0


def test_control_groups_of_version_1_count_too(tmp_path: Path) -> None:
    machine(tmp_path, "5:cpuset:/box\n4:cpu,memory:/not/visible/here\n0::/\n")
    top = tmp_path / "cgroup/memory"
    write(top / "memory.limit_in_bytes", "700000\n")
    write(top / "memory.usage_in_bytes", "300000\n")
    write(top / "memory.stat", "cache 1\ntotal_inactive_file 100000\n")
    assert measure(tmp_path) == HostMemory(500_000, str(top / "memory.limit_in_bytes"))


def test_this_machine_has_memory() -> None:
    assert host_memory().available_bytes > 0
