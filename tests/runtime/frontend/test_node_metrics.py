"""What Prometheus scrapes of nodes is what they reported last."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aegaeon.runtime.frontend.node_metrics import NodeCollector
from aegaeon.runtime.wire.messages import KvCounts, NodeState


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


def test_before_the_first_report_there_is_nothing() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: ()))
    assert b'node="' not in generate_latest(registry)
