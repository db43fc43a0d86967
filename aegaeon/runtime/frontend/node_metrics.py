"""What Prometheus sees of nodes: the KV slab cache of each, by its last report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aegaeon.runtime.wire.messages import KvCounts, NodeState

_GAUGES: tuple[tuple[str, str, Callable[[KvCounts], int]], ...] = (
    ("used", "KV of requests under way.", lambda kv: kv.used_bytes),
    ("kept", "KV of ended requests, which gives way when room is needed.", lambda kv: kv.kept_bytes),
    ("assigned", "Slabs of the KV cache that serve a shape.", lambda kv: kv.assigned_bytes),
    ("capacity", "The whole KV cache.", lambda kv: kv.total_bytes),
)


class NodeCollector(Collector):
    """``states``: the last report of each node, with its id."""

    def __init__(self, states: Callable[[], Sequence[tuple[str, NodeState]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        counts = [(node_id, state.kv) for node_id, state in self._states()]
        for name, help_text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"aegaeon_kv_{name}_bytes", help_text, labels=("node",))
            for node_id, kv in counts:
                gauge.add_metric((node_id,), value(kv))
            yield gauge
        evicted = CounterMetricFamily("aegaeon_kv_evicted_blocks", "Kept KV that had to give way.", labels=("node",))
        for node_id, kv in counts:
            evicted.add_metric((node_id,), kv.evicted_blocks)
        yield evicted
