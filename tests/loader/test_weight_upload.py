"""Weights on their way to a GPU: the loader's copies among the device's own events, over both fake drivers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

import quick_model_loader as qml
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.runtime.instance.host_entry import device_tensors
from aegaeon.runtime.instance.weight_upload import LoaderUploader, PlainUploader, Uploader
from tests.device.fake_cuda_driver import FakeCudaDriver, cuda_device
from tests.loader.test_copy import TENSORS, FakeCuda, cuda, found

__all__ = ["cuda", "found"]  # fixtures
PAGE = 1 << 20


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    driver = FakeCudaDriver(64 * PAGE, PAGE, all_pinned=True)
    made = cuda_device(driver, 64, PAGE)
    yield made
    made.close()
    assert driver.leaks == {}


def bring_in(device: CudaDevice, uploader: Uploader, entry: qml.Entry) -> tuple[object, dict[str, torch.Tensor]]:
    held = device.reserve(entry.nbytes)
    device.map(held, 0, range(held.size_bytes // PAGE))
    memory = device.view(held, 0, (entry.nbytes,), torch.uint8)
    upload = uploader.begin(entry, memory)
    tensors = device_tensors(entry, memory)
    device.synchronize(upload.event)
    return upload.held, tensors


def test_the_device_copies_by_itself(device: CudaDevice, found: qml.Entry) -> None:
    _, tensors = bring_in(device, PlainUploader(device), found)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_loader_copies_from_its_pinned_arena(device: CudaDevice, found: qml.Entry, cuda: FakeCuda) -> None:
    uploader = LoaderUploader(device, qml.CudaDevice(library=cuda.path))
    transfer, tensors = bring_in(device, uploader, found)
    assert cuda.count("registered") == 1
    assert isinstance(transfer, qml.Transfer)
    transfer.wait()  # its driver is another fake, which knows nothing of the device's events
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_an_arena_that_cannot_be_pinned_is_told_once(
    device: CudaDevice, found: qml.Entry, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = LoaderUploader(device, qml.CudaDevice(library=cuda.path))
    cuda.fail("cuMemHostRegister", 1)
    with caplog.at_level(logging.WARNING):
        transfer, tensors = bring_in(device, uploader, found)
    assert isinstance(transfer, qml.Transfer)
    transfer.wait()
    assert caplog.text.count("the weight cache cannot be pinned") == 1
    caplog.clear()  # the record holds the error, and that the loader's device
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
