"""What Prometheus scrapes of nodes is what they reported last."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aegaeon.runtime.frontend.node_metrics import NodeCollector
from aegaeon.runtime.wire.messages import DiskCounts, KvCounts, NodeState


def test_the_slab_cache_of_each_node_has_its_series() -> None:
    reports = [
        (name, NodeState(0.0, (), (), (), KvCounts(*(base + index for index in range(5))), 0, 0, (), 0))
        for name, base in (("n0", 10), ("n1", 20))
    ]
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: reports))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    seen = {(sample.name, sample.labels["node"]): sample.value for family in families for sample in family.samples}
    names = ("used_bytes", "kept_bytes", "assigned_bytes", "capacity_bytes", "evicted_blocks_total")
    assert seen == {
        (f"aegaeon_kv_{name}", node): base + index
        for index, name in enumerate(names)
        for node, base in (("n0", 10), ("n1", 20))
    }


def test_a_node_with_kv_on_disk_has_series_for_it() -> None:
    kv, disk = KvCounts(*range(5)), DiskCounts(*range(8))
    reports = [(name, NodeState(0.0, (), (), (), kv, 0, 0, (), 0, tier)) for name, tier in (("n0", disk), ("n1", None))]
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: reports))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    seen = {
        sample.name.removeprefix("aegaeon_kv_disk_"): (sample.labels["node"], sample.value)
        for family in families
        for sample in family.samples
        if sample.name.startswith("aegaeon_kv_disk_")
    }
    assert seen == {
        "used_bytes": ("n0", 0),
        "capacity_bytes": ("n0", 1),
        "evicted_blocks_total": ("n0", 3),
        "written_bytes_total": ("n0", 4),
        "hits_total": ("n0", 5),
        "read_tokens_total": ("n0", 6),
        "read_bytes_total": ("n0", 7),
    }


def test_before_the_first_report_there_is_nothing() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: ()))
    assert b'node="' not in generate_latest(registry)
