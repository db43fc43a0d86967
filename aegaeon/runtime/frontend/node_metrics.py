"""What Prometheus sees of nodes: the KV slab cache of each, by its last report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aegaeon.runtime.wire.messages import DiskCounts, KvCounts, NodeState

_GAUGES: tuple[tuple[str, str, Callable[[KvCounts], int]], ...] = (
    ("used", "KV of requests under way.", lambda kv: kv.used_bytes),
    ("kept", "KV of ended requests, which gives way when room is needed.", lambda kv: kv.kept_bytes),
    ("assigned", "Slabs of the KV cache that serve a shape.", lambda kv: kv.assigned_bytes),
    ("capacity", "The whole KV cache.", lambda kv: kv.total_bytes),
)
_DISK_GAUGES: tuple[tuple[str, str, Callable[[DiskCounts], int]], ...] = (
    ("used_bytes", "KV on disk.", lambda disk: disk.used_bytes),
    ("capacity_bytes", "KV that may be on disk.", lambda disk: disk.total_bytes),
)
_DISK_COUNTERS: tuple[tuple[str, str, Callable[[DiskCounts], int]], ...] = (
    ("evicted_blocks", "KV on disk that had to give way.", lambda disk: disk.evicted_blocks),
    ("written_bytes", "KV written to disk.", lambda disk: disk.written_bytes),
    ("hits", "Requests for which KV was read from disk.", lambda disk: disk.hits),
    ("read_tokens", "Tokens whose KV was read from disk.", lambda disk: disk.read_tokens),
    ("read_bytes", "KV read from disk.", lambda disk: disk.read_bytes),
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
        disks = [(node_id, state.disk) for node_id, state in self._states() if state.disk is not None]
        for name, help_text, count in _DISK_GAUGES:
            yield _family(GaugeMetricFamily(f"aegaeon_kv_disk_{name}", help_text, labels=("node",)), disks, count)
        for name, help_text, count in _DISK_COUNTERS:
            yield _family(CounterMetricFamily(f"aegaeon_kv_disk_{name}", help_text, labels=("node",)), disks, count)


def _family(
    family: GaugeMetricFamily | CounterMetricFamily,
    disks: Sequence[tuple[str, DiskCounts]],
    count: Callable[[DiskCounts], int],
) -> Metric:
    for node_id, disk in disks:
        family.add_metric((node_id,), count(disk))
    return family
