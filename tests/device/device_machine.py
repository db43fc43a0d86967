"""Any device, driven at random against a model of what it should hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Device, Stream, VirtualRange

PAGE = 4096


class DeviceMachine(RuleBasedStateMachine):
    """Real mappings against a model that keeps a stamp for each page and a page for each place."""

    PAGES = 6

    @initialize()
    def start(self) -> None:
        self.device = self.make()
        self.stamps: dict[int, int] = {}
        self.places: dict[VirtualRange, dict[int, int]] = {}
        self.stamp = 0

    @rule(size_pages=st.integers(1, 5))
    def reserve(self, size_pages: int) -> None:
        held = self.device.reserve(size_pages * PAGE - 1)
        ends = [(other.address, other.end) for other in self.places]
        assert all(held.end <= start or held.address >= end for start, end in ends)
        self.places[held] = {}

    @precondition(lambda self: self.places)
    @rule(data=st.data(), first=st.integers(0, 5), pages=st.lists(st.integers(0, PAGES), max_size=4))
    def map(self, data: st.DataObject, first: int, pages: list[int]) -> None:
        held = self._pick(data)
        busy = {page for places in self.places.values() for page in places.values()}
        wanted = dict(zip(range(first, first + len(pages)), pages, strict=True))
        inside = first + len(pages) <= held.size_bytes // PAGE
        free = len(set(pages)) == len(pages) and not busy & set(pages) and self.PAGES not in pages
        if not (inside and free and not wanted.keys() & self.places[held].keys()):
            with pytest.raises(DeviceError):
                self.device.map(held, first * PAGE, pages)
        else:
            self.device.map(held, first * PAGE, pages)
            self.places[held] |= wanted

    @precondition(lambda self: self.places)
    @rule(data=st.data(), first=st.integers(0, 5), count=st.integers(0, 4))
    def unmap(self, data: st.DataObject, first: int, count: int) -> None:
        held = self._pick(data)
        wanted = set(range(first, first + count))
        inside = first + count <= held.size_bytes // PAGE
        if not (inside and wanted <= self.places[held].keys()):
            with pytest.raises(DeviceError):
                self.device.unmap(held, first * PAGE, count * PAGE)
        else:
            self.device.unmap(held, first * PAGE, count * PAGE)
            for place in wanted:
                del self.places[held][place]

    @precondition(lambda self: self.places)
    @rule(data=st.data(), stream=st.sampled_from(Stream))
    def write(self, data: st.DataObject, stream: Stream) -> None:
        held = self._pick(data)
        if not self.places[held]:
            return
        place = data.draw(st.sampled_from(sorted(self.places[held])))
        self.stamp += 1
        view = self.device.view(held, place * PAGE, (PAGE // 8,), torch.int64)
        self.device.synchronize(self.device.copy(view, torch.full((PAGE // 8,), self.stamp), stream))
        self.stamps[self.places[held][place]] = self.stamp

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self._pick(data)
        if self.places[held]:
            with pytest.raises(DeviceError):
                self.device.release(held)
        else:
            self.device.release(held)
            del self.places[held]

    def _pick(self, data: st.DataObject) -> VirtualRange:
        return data.draw(st.sampled_from(sorted(self.places, key=lambda held: held.address)))

    @invariant()
    def every_place_reads_its_page(self) -> None:
        for held, places in self.places.items():
            for place, page in places.items():
                view = self.device.view(held, place * PAGE, (PAGE // 8,), torch.int64)
                assert view.eq(self.stamps.get(page, 0)).all()

    @invariant()
    def bytes_are_conserved(self) -> None:
        info = self.device.memory_info()
        assert info.mapped_bytes == sum(map(len, self.places.values())) * PAGE
        assert info.reserved_bytes == sum(held.size_bytes for held in self.places)

    def teardown(self) -> None:
        if hasattr(self, "device"):
            self.device.close()
            self.check_closed()

    def make(self) -> Device:
        """The device to be tested, with ``PAGES`` pages of ``PAGE`` bytes."""
        raise NotImplementedError

    def check_closed(self) -> None:
        """That a closed device has left nothing behind."""
        raise NotImplementedError
