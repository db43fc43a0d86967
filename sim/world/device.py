"""A simulated device: its pages, its host link, and the compute that the instances on it share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegaeon.memory.page_pool import PagePool
from aegaeon.scheduler.layout import PlacedInstance, PoolDevice
from sim.systems.errors import SimulationError
from sim.world.device_weights import DeviceWeights
from sim.world.host_link import HostLink, OutLink

if TYPE_CHECKING:
    from sim.world.instance import SimInstance
    from sim.world.node import SimNode


class SimDevice:
    """Pages are reserved for each instance's KV at the start; weights take and give back the others.

    Where weights and KV of an instance share its memory only weights are in the ledger; the instance sees to it that
    its KV stays within what they leave.
    """

    def __init__(self, device: PoolDevice, placed: list[PlacedInstance], overlap: float, node: SimNode) -> None:
        self.name = device.name
        self._overlap = overlap
        self._node = node
        self.link = HostLink(node.at)
        self.out_link = OutLink()
        self._active: dict[str, SimInstance] = {}
        page_bytes = node.constants.page_bytes
        # Sizes are rounded up to pages: as many pages more as there can be allocations keep the bytes honest.
        rounding = sum(1 + item.spec.max_resident_models for item in placed)
        self.pages = PagePool(device.memory_bytes // page_bytes + rounding, page_bytes)
        claimed = sum(item.spec.total_bytes for item in placed)
        if claimed > device.memory_bytes:
            raise SimulationError(f"the instances on {device.name} claim {claimed} of {device.memory_bytes} bytes")
        for item in placed:
            if item.spec.memory_bytes is None:
                self.pages.allocate(f"{item.spec.instance_id} KV", -(-item.spec.kv_bytes // page_bytes))
        self.instances = [instance_on(item, self, node) for item in placed]

    def weights_for(self, instance: SimInstance) -> DeviceWeights:
        """The weights of one of its instances."""
        node = self._node
        return DeviceWeights(
            instance.instance_id, node.models, node.constants, self.pages, self.link, node.host, instance.weights_landed
        )

    def speed(self, instance: SimInstance) -> float:
        """How fast the instance would compute now, beside those that do (see ``Layout``)."""
        if not self._active:
            return 1.0
        others = sum(other.share for other in self._active.values() if other is not instance)
        return instance.share / (instance.share + (1.0 - self._overlap) * others) if others else 1.0

    def work(self, instance: SimInstance, now_s: float) -> None:
        """The instance computes from now on; where it did not, the others become slower after their present step."""
        if len(self.instances) > 1 and instance.instance_id not in self._active:
            self._active[instance.instance_id] = instance
            self._disturb(instance, now_s)

    def rest(self, instance: SimInstance, now_s: float) -> None:
        """The instance computes no more for now; where it did, the others become faster."""
        if self._active.pop(instance.instance_id, None) is not None:
            self._disturb(instance, now_s)

    def _disturb(self, changed: SimInstance, now_s: float) -> None:
        for other in list(self._active.values()):
            if other is not changed:
                other.interrupt(now_s)


def instance_on(placed: PlacedInstance, device: SimDevice, node: SimNode) -> SimInstance:
    """The simulated instance of a placement."""
    from sim.world.instance import SimInstance  # the two know each other

    return SimInstance(placed, device, node)
