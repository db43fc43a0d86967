"""Sizes that fit a machine, and what is read of one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.memory.weight_chunks import capacity_for
from aegaeon.settings.error import SettingsError
from aegaeon.settings.machine import (
    CUDA_PAGE_BYTES,
    MIN_KV_SLABS,
    OTHER_PROCESSES,
    PROCESS_BYTES,
    Machine,
    fit,
    read_machine,
)

MIB, GIB = 1 << 20, 1 << 30
OPEN = PoolConfig(models=(), instances=())


def instance_count(config: PoolConfig) -> int:
    return sum(instance.count for instance in config.instances)


class TestFit:
    @pytest.mark.parametrize(
        ("cores", "instances", "threads"),
        [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (8, 4, 2), (16, 8, 2), (64, 8, 8)],
    )
    def test_instances_and_threads_follow_the_cores(self, cores, instances, threads):
        config = fit(OPEN, Machine(cores, 256 * GIB), {"a": GIB})
        assert config.instances == (InstanceConfig(Role.MIXED, instances),)
        assert config.threads_per_instance == threads

    def test_little_memory_means_fewer_instances(self):
        assert instance_count(fit(OPEN, Machine(64, 6 * GIB), {"a": MIB})) == 4

    def test_explicit_instances_share_the_cores(self):
        chosen = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
        config = fit(replace(OPEN, instances=chosen), Machine(8, 64 * GIB), {"a": GIB})
        assert (config.instances, config.threads_per_instance) == (chosen, 2)
        assert fit(replace(OPEN, instances=chosen), Machine(2, 64 * GIB), {"a": GIB}).threads_per_instance == 1

    def test_a_driver_stands_by_where_memory_and_cores_allow(self):
        assert fit(OPEN, Machine(4, 5 * GIB), {"a": MIB}).standby_driver is True
        assert fit(OPEN, Machine(4, 5 * GIB - 1), {"a": MIB}).standby_driver is False
        assert fit(OPEN, Machine(2, 64 * GIB), {"a": MIB}).standby_driver is False
        assert fit(replace(OPEN, standby_driver=False), Machine(4, 64 * GIB), {"a": MIB}).standby_driver is False
        asked = fit(replace(OPEN, standby_driver=True), Machine(2, 64 * GIB), {"a": MIB})
        plain = fit(OPEN, Machine(2, 64 * GIB), {"a": MIB})
        assert asked.standby_driver is True
        assert (plain.kv_cache_bytes or 0) > (asked.kv_cache_bytes or 0)

    def test_a_cache_of_all_models_is_enough_for_any_number_of_instances(self):
        many = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
        config = fit(replace(OPEN, instances=many), Machine(2, 64 * GIB), {"a": GIB, "b": GIB})
        assert config.weight_cache_bytes == 2 * GIB
        with pytest.raises(
            SettingsError, match=r"for each of 3 instances, nor all models once; set it to at least 2147"
        ):
            fit(replace(config, weight_cache_bytes=GIB + MIB), Machine(2, 64 * GIB), {"a": GIB, "b": GIB})

    def test_all_weights_are_cached_where_they_fit(self):
        config = fit(OPEN, Machine(2, 64 * GIB), {"a": 3 * GIB, "b": GIB + 1})
        assert config.weight_cache_bytes == 4 * GIB + 2 * MIB
        free = 64 * GIB * 9 // 10 - 3 * PROCESS_BYTES - config.weight_cache_bytes
        assert config.kv_cache_bytes == free // 2 // OPEN.slab_bytes * OPEN.slab_bytes

    def test_weights_leave_a_quarter_to_kv_where_they_do_not_fit(self):
        config = fit(OPEN, Machine(2, 16 * GIB), {f"m{index}": 4 * GIB for index in range(10)})
        budget = 16 * GIB * 9 // 10 - 3 * PROCESS_BYTES
        assert config.weight_cache_bytes == pytest.approx(budget * 3 / 4, abs=2 * MIB)
        assert config.kv_cache_bytes == pytest.approx(budget / 8, abs=OPEN.slab_bytes)

    def test_explicit_sizes_stay(self):
        wish = replace(OPEN, weight_cache_bytes=2 * GIB, kv_cache_bytes=GIB, threads_per_instance=7)
        config = fit(wish, Machine(2, 8 * GIB), {"a": GIB})
        assert (config.weight_cache_bytes, config.kv_cache_bytes, config.threads_per_instance) == (2 * GIB, GIB, 7)

    def test_an_explicit_kv_cache_leaves_the_rest_to_weights(self):
        models = {f"m{index}": GIB for index in range(20)}
        config = fit(replace(OPEN, kv_cache_bytes=GIB), Machine(2, 16 * GIB), models)
        assert config.weight_cache_bytes == pytest.approx(16 * GIB * 0.9 - 3 * PROCESS_BYTES - GIB, abs=2 * MIB)

    def test_a_control_group_limits_more_than_the_machine(self):
        roomy, limited = Machine(2, 64 * GIB), Machine(2, 64 * GIB, group_bytes=8 * GIB)
        sizes = {f"m{index}": GIB for index in range(20)}
        assert fit(OPEN, limited, sizes) == fit(OPEN, Machine(2, 8 * GIB), sizes)
        assert fit(OPEN, limited, sizes) != fit(OPEN, roomy, sizes)

    def test_device_pages_take_their_share_only_when_copying(self):
        wish = replace(OPEN, copy_to_device=True, instances=(InstanceConfig(Role.MIXED, 2),))
        config = fit(wish, Machine(2, 16 * GIB), {"a": GIB})
        assert config.device_bytes % OPEN.page_bytes == 0
        assert 2 * config.device_bytes + config.weight_cache_bytes + config.kv_cache_bytes < 16 * GIB
        assert fit(replace(wish, copy_to_device=False), Machine(2, 16 * GIB), {"a": GIB}).device_bytes is None

    def test_gpus_are_used_where_there_are_some(self):
        machine = Machine(16, 256 * GIB, gpu_bytes=(140 * GIB, 80 * GIB))
        config = fit(OPEN, machine, {"a": GIB})
        assert (config.device, config.copy_to_device) == ("cuda", True)
        assert config.instances == (InstanceConfig(Role.MIXED, 2),)
        assert config.page_bytes == CUDA_PAGE_BYTES
        assert config.device_bytes % CUDA_PAGE_BYTES == 0
        assert 60 * GIB < config.device_bytes < 80 * GIB * 9 // 10
        host = fit(OPEN, replace(machine, gpu_bytes=()), {"a": GIB})
        assert (host.device, host.copy_to_device, host.device_bytes) == ("cpu", False, None)
        assert fit(replace(OPEN, device="cpu"), machine, {"a": GIB}).device == "cpu"

    def test_instances_share_gpus(self):
        wish = replace(OPEN, instances=(InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 3)))
        config = fit(wish, Machine(16, 256 * GIB, gpu_bytes=(80 * GIB, 80 * GIB)), {"a": GIB})
        assert config.device_bytes < 40 * GIB * 9 // 10

    def test_a_gpu_that_is_asked_for_and_not_there(self):
        machine = Machine(4, 64 * GIB, gpu_problem="there is no NVIDIA driver here")
        with pytest.raises(SettingsError, match="--device cuda: there is no NVIDIA driver here; use --device cpu"):
            fit(replace(OPEN, device="cuda"), machine, {"a": GIB})

    @given(
        cores=st.integers(1, 256),
        available=st.integers(0, 1 << 42),
        group=st.none() | st.integers(0, 1 << 42),
        sizes=st.lists(st.integers(1, 1 << 41), min_size=1, max_size=5),
    )
    def test_it_fits_exactly_where_one_instance_with_the_largest_model_does(self, cores, available, group, sizes):
        machine = Machine(cores, available, group)
        weights = {str(index): size for index, size in enumerate(sizes)}
        largest = capacity_for((max(sizes),))
        if largest + MIN_KV_SLABS * OPEN.slab_bytes + (1 + OTHER_PROCESSES) * PROCESS_BYTES > machine.room_bytes:
            with pytest.raises(SettingsError, match="too little shared memory"):
                fit(OPEN, machine, weights)
            return
        config = fit(OPEN, machine, weights)
        processes = (instance_count(config) + OTHER_PROCESSES) * PROCESS_BYTES
        assert config.weight_cache_bytes + config.kv_cache_bytes + processes <= machine.room_bytes
        assert config.weight_cache_bytes >= largest
        assert config.kv_cache_bytes >= MIN_KV_SLABS * config.slab_bytes
        assert 1 <= instance_count(config) <= 8
        assert config.threads_per_instance >= 1


class TestShortage:
    """The message says how much is needed, how much there is and where, and the flag."""

    SMALL = Machine(2, 16 * GIB)
    SIXTY = (InstanceConfig(Role.MIXED, 60),)
    ON_MACHINE = "16 GiB are free on this machine"

    @pytest.mark.parametrize(
        ("wish", "machine", "weights", "parts"),
        [
            ({"kv_cache_bytes": 40 * GIB}, SMALL, GIB, ["42.5 GiB are needed (", "40 GiB for --kv-cache", ON_MACHINE]),
            ({"weight_cache_bytes": 40 * GIB}, SMALL, GIB, ["40 GiB for --weight-cache"]),
            ({}, SMALL, 20 * GIB, ["20 GiB for --weight-cache", "serve smaller models"]),
            ({}, Machine(2, 64 * GIB, 2 * GIB), GIB, ["2 GiB are free in this control group"]),
            ({"instances": SIXTY}, SMALL, GIB, ["31 GiB for 62 processes", "--instances"]),
            ({"copy_to_device": True, "device_bytes": 99 * GIB}, SMALL, GIB, ["99 GiB for --device-memory"]),
            (
                {"weight_cache_bytes": GIB},
                SMALL,
                2 * GIB,
                ["--weight-cache: 1 GiB cannot hold model 'm'", "2147483648"],
            ),
            ({"kv_cache_bytes": MIB}, SMALL, GIB, ["--kv-cache: 1 MiB cannot hold 4 slabs", "67108864"]),
        ],
    )
    def test_message(self, wish, machine, weights, parts):
        with pytest.raises(SettingsError) as caught:
            fit(replace(OPEN, **wish), machine, {"m": weights})
        assert all(part in str(caught.value) for part in parts), str(caught.value)


class TestReadMachine:
    @pytest.fixture
    def kernel(self, tmp_path):
        """Writes files as a kernel would: ``/proc`` and ``/sys/fs/cgroup``."""

        def write(memberships: str, **files: str) -> Machine:
            proc, groups = tmp_path / "proc", tmp_path / "cgroup"
            (proc / "self").mkdir(parents=True)
            (proc / "self" / "cgroup").write_text(memberships)
            (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   4096 kB\n")
            for name, text in files.items():
                file = groups / name.replace("__", "/").replace("_DOT_", ".")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            return read_machine(proc, groups)

        return write

    def test_without_groups_the_machine_is_the_limit(self, kernel):
        machine = kernel("0::/\n")
        assert (machine.available_bytes, machine.group_bytes, machine.room_bytes) == (4 << 20, None, 4 << 20)
        assert machine.cores >= 1

    def test_version_2(self, kernel):
        machine = kernel(
            "0::/pod/me\n",
            pod__me__memory_DOT_max="2097152\n",
            pod__me__memory_DOT_current="1048576\n",
            pod__me__memory_DOT_stat="anon 5\ninactive_file 4096\n",
            pod__me__cpu_DOT_max="50000 100000\n",
        )
        assert (machine.group_bytes, machine.cores) == (1048576 + 4096, 1)

    def test_a_group_above_may_be_tighter(self, kernel):
        machine = kernel(
            "0::/pod/me\n",
            pod__me__memory_DOT_max="max\n",
            pod__me__memory_DOT_current="100\n",
            pod__memory_DOT_max="1000\n",
            pod__memory_DOT_current="900\n",
        )
        assert (machine.group_bytes, machine.place) == (100, "in this control group (container)")

    def test_version_1(self, kernel):
        machine = kernel(
            "4:memory:/box\n2:cpu,cpuacct:/box\n",
            memory__box__memory_DOT_limit_in_bytes="1000\n",
            memory__box__memory_DOT_usage_in_bytes="700\n",
            memory__box__memory_DOT_stat="inactive_file 1\ntotal_inactive_file 50\n",
            cpu__box__cpu_DOT_cfs_quota_us="100000\n",
            cpu__box__cpu_DOT_cfs_period_us="100000\n",
        )
        assert (machine.group_bytes, machine.cores) == (350, 1)

    def test_version_1_without_a_limit(self, kernel):
        machine = kernel(
            "4:memory:/\n2:cpu:/\n",
            memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
            memory__memory_DOT_usage_in_bytes="700\n",
            cpu__cpu_DOT_cfs_quota_us="-1\n",
            cpu__cpu_DOT_cfs_period_us="100000\n",
        )
        assert machine.group_bytes is None

    def test_a_group_that_is_over_its_limit_has_no_room(self, kernel):
        machine = kernel("0::/\n", memory_DOT_max="10\n", memory_DOT_current="20\n")
        assert machine.room_bytes == 0

    def test_this_machine(self):
        machine = read_machine()
        assert machine.cores >= 1
        assert machine.room_bytes > 0
