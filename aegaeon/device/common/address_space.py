"""What is reserved and mapped on one device, and the rules of the protocol about it.

Every backend asks here before it acts, so that all of them refuse the same mistakes in the same words.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import VirtualRange
from aegaeon.device.common.span import Span


@dataclass(frozen=True, slots=True)
class Region:
    """A reserved range and the page at each of its places; places are a page apart and numbered from 0."""

    reserved: VirtualRange
    pages: dict[int, int] = field(default_factory=dict)


class AddressSpace:
    """The ranges of a device with pages ``0 .. pages - 1`` of ``page_bytes`` each, and where those are mapped.

    Invariant: ``_mapped`` holds exactly the pages of all regions, each of which is at one place.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        if pages < 0 or page_bytes < 1:
            raise DeviceError(f"a device needs a page size and no negative number of pages: {pages} x {page_bytes}")
        self.pages = pages
        self.page_bytes = page_bytes
        self._regions: dict[int, Region] = {}
        self._addresses: list[int] = []  # of the regions, ascending
        self._mapped: set[int] = set()

    @property
    def ranges(self) -> tuple[VirtualRange, ...]:
        """The reserved ranges, by address."""
        return tuple(self._regions[address].reserved for address in self._addresses)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of mapped pages."""
        return len(self._mapped) * self.page_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all ranges."""
        return sum(reserved.size_bytes for reserved in self.ranges)

    def round_up(self, size_bytes: int) -> int:
        """The size of a range for this many bytes."""
        if size_bytes < 1:
            raise DeviceError(f"cannot reserve {size_bytes} bytes: a range needs at least one")
        return -(-size_bytes // self.page_bytes) * self.page_bytes

    def enter(self, reserved: VirtualRange) -> None:
        """Note a range that the backend has reserved."""
        self._regions[reserved.address] = Region(reserved)
        insort(self._addresses, reserved.address)

    def leave(self, reserved: VirtualRange) -> None:
        """Forget a range; refused while a page is mapped in it."""
        region = self._region(reserved)
        if region.pages:
            raise DeviceError(f"{len(region.pages)} pages are mapped in the range to release: unmap them first")
        del self._regions[reserved.address]
        self._addresses.remove(reserved.address)

    def map(self, reserved: VirtualRange, offset_bytes: int, pages: Sequence[int]) -> Span:
        """Note pages at consecutive places, all or none, and return the bytes that they are to back."""
        region = self._region(reserved)
        span, places = self._whole_pages(reserved, offset_bytes, len(pages) * self.page_bytes)
        if any(place in region.pages for place in places):
            raise DeviceError(f"offset {offset_bytes} holds pages already: unmap them before mapping others there")
        self._require_free(pages)
        region.pages.update(zip(places, pages, strict=True))
        self._mapped.update(pages)
        return span

    def unmap(self, reserved: VirtualRange, offset_bytes: int, size_bytes: int) -> Span:
        """Forget the pages of a stretch that is mapped throughout, and return its bytes."""
        region = self._region(reserved)
        span, places = self._whole_pages(reserved, offset_bytes, size_bytes)
        self._require_mapped(region, span)
        for place in places:
            self._mapped.remove(region.pages.pop(place))
        return span

    def mapped_span(self, reserved: VirtualRange, offset_bytes: int, size_bytes: int) -> Span:
        """The bytes of a part of a range; refused where the part leaves it, or a page is missing."""
        span = self._part(reserved, offset_bytes, size_bytes)
        self._require_mapped(self._region(reserved), span)
        return span

    def mapped_spans(self, reserved: VirtualRange) -> Iterator[Span]:
        """The mapped pages of a range, one by one."""
        for place in self._region(reserved).pages:
            yield Span(reserved.address + place * self.page_bytes, self.page_bytes)

    def require_mapped(self, span: Span) -> None:
        """Refuse bytes of a range that no page backs. Bytes outside all ranges are the host's, and fine."""
        index = bisect_right(self._addresses, span.address) - 1
        if index < 0:
            return
        region = self._regions[self._addresses[index]]
        if span.address < region.reserved.end:
            self._part(region.reserved, span.address - region.reserved.address, span.size_bytes)
            self._require_mapped(region, span)

    def _region(self, reserved: VirtualRange) -> Region:
        region = self._regions.get(reserved.address)
        if region is None or region.reserved != reserved:
            raise DeviceError(f"{reserved} is not reserved here: reserve it first, and use it until it is released")
        return region

    def _part(self, reserved: VirtualRange, offset_bytes: int, size_bytes: int) -> Span:
        if offset_bytes < 0 or size_bytes < 0 or offset_bytes + size_bytes > reserved.size_bytes:
            raise DeviceError(
                f"{size_bytes} bytes at offset {offset_bytes} leave the range, which has {reserved.size_bytes}: "
                f"stay inside, or reserve a larger one"
            )
        return Span(reserved.address + offset_bytes, size_bytes)

    def _whole_pages(self, reserved: VirtualRange, offset_bytes: int, size_bytes: int) -> tuple[Span, range]:
        if offset_bytes % self.page_bytes or size_bytes % self.page_bytes:
            raise DeviceError(
                f"offset {offset_bytes} and size {size_bytes} must be multiples of the page size, {self.page_bytes}"
            )
        span = self._part(reserved, offset_bytes, size_bytes)
        return span, range(offset_bytes // self.page_bytes, (offset_bytes + size_bytes) // self.page_bytes)

    def _require_free(self, pages: Sequence[int]) -> None:
        unknown = [page for page in pages if not 0 <= page < self.pages]
        if unknown:
            raise DeviceError(f"there are no pages {unknown}: the device has {self.pages}, numbered from 0")
        if len(set(pages)) != len(pages) or not self._mapped.isdisjoint(pages):
            raise DeviceError(f"of pages {list(pages)} one would be mapped twice: unmap it where it is first")

    def _require_mapped(self, region: Region, span: Span) -> None:
        offset_bytes = span.address - region.reserved.address
        first, last = offset_bytes // self.page_bytes, -(-(offset_bytes + span.size_bytes) // self.page_bytes)
        missing = sum(place not in region.pages for place in range(first, last)) if span.size_bytes else 0
        if missing:
            raise DeviceError(
                f"{missing} pages of the {span.size_bytes} bytes at offset {offset_bytes} are not mapped: "
                f"map them before the bytes are viewed, copied or unmapped"
            )
