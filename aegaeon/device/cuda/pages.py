"""The physical pages of a GPU, made once, and where they are mapped."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.cuda.driver import CudaDriver, CudaError


class CudaPages:
    """``pages`` pieces of physical memory of ``page_bytes``. Raises ``DeviceError`` where the device has too little."""

    def __init__(self, driver: CudaDriver, pages: int, page_bytes: int, memory_flag: str) -> None:
        granularity = driver.granularity_bytes
        if page_bytes < 1 or page_bytes % granularity:
            raise DeviceError(f"pages of {page_bytes} bytes: make them a multiple of the device's {granularity}")
        self._driver = driver
        self._page_bytes = page_bytes
        self._handles: list[int] = []
        try:
            for _ in range(pages):
                self._handles.append(driver.mem_create(page_bytes))
        except CudaError as error:
            made = len(self._handles)
            self.close()
            raise DeviceError(
                f"{driver.name} has room for {made} of {pages} pages of {page_bytes} bytes ({error}): "
                f"lower {memory_flag}, or end what else uses the device"
            ) from error

    def map(self, address: int, pages: Sequence[int]) -> None:
        """Put pages behind consecutive addresses, all or none, and let the device use them."""
        mapped = 0
        try:
            for page in pages:
                self._driver.mem_map(address + mapped, self._page_bytes, self._handles[page])
                mapped += self._page_bytes
            if mapped:
                self._driver.mem_set_access(address, mapped)
        except CudaError:
            if mapped:
                self._driver.mem_unmap(address, mapped)
            raise

    def unmap(self, address: int, size_bytes: int) -> None:
        """Take away the pages behind addresses."""
        if size_bytes:
            self._driver.mem_unmap(address, size_bytes)

    def close(self) -> None:
        """Give the memory back; nothing may be mapped."""
        for handle in self._handles:
            self._driver.mem_release(handle)
        self._handles.clear()
