"""How a model's bytes get from the host cache to device memory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import quick_model_loader as qml
from aegaeon.device.common.protocol import Device, Event, Stream
from aegaeon.device.cuda.device import CudaDevice

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Upload:
    """A copy under way: over when ``event`` has happened; ``held`` must live until then."""

    event: Event
    held: object = None


class Uploader(Protocol):
    """Copies whole entries, on the stream ``COPY_IN``."""

    def begin(self, entry: qml.Entry, memory: Tensor) -> Upload:
        """Copy an entry's bytes to ``memory``, of the entry's size; tensors keep their offsets."""
        ...


class PlainUploader:
    """Copies with the device's own means, as one piece."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def begin(self, entry: qml.Entry, memory: Tensor) -> Upload:
        return Upload(self._device.copy(memory, entry.torch_bytes(), Stream.COPY_IN))


class LoaderUploader:
    """Copies with the loader, which knows the arena that entries lie in: it is pinned once, for all of them.

    Where the arena cannot be pinned, bytes go through small pinned buffers, which keeps the instance busy meanwhile; a
    warning says so.
    """

    def __init__(self, device: CudaDevice, loader: qml.CudaDevice) -> None:
        self._device = device
        self._loader = loader
        self._tried_to_pin = False

    def begin(self, entry: qml.Entry, memory: Tensor) -> Upload:
        self._pin(entry)
        address = memory.data_ptr()
        placements = [
            qml.Placement(name, address + entry.offset(name), tensor.nbytes)
            for name, tensor in entry.tensors.items()
            if tensor.nbytes
        ]
        stream = self._device.stream_handle(Stream.COPY_IN)
        transfer = entry.plan(placements).copy_to(self._loader, stream)
        return Upload(self._device.record(Stream.COPY_IN), transfer)

    def _pin(self, entry: qml.Entry) -> None:
        if self._tried_to_pin:
            return
        self._tried_to_pin = True
        start_s = time.monotonic()
        try:
            self._loader.register(entry)
        except qml.CudaError as error:
            logger.warning(
                "the weight cache cannot be pinned (%s): weights are copied in small pieces, more slowly, and hold "
                "up the instance meanwhile; raise ulimit -l, or lower --weight-cache",
                error,
            )
        else:
            logger.info("pinned the weight cache in %.1f s", time.monotonic() - start_s)
