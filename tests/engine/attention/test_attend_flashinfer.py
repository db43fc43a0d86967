"""FlashInfer as an attention backend: what it is told of our blocks, against plain arithmetic; it needs CUDA itself."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import torch

from aegaeon.core.kv_shape import LayerKv
from aegaeon.engine.attention import attend_flashinfer
from aegaeon.engine.attention.attend_flashinfer import FlashInferAttention, PageTable
from aegaeon.engine.attention.attend_gather import GatherAttention
from aegaeon.engine.attention.attention import Reach
from aegaeon.engine.attention.device_attention import DeviceAttention, LayerNeeds
from tests.engine.attention import fake_flashinfer
from tests.engine.attention.test_device_attention import CPU, FEW, difference
from tests.engine.step.test_device_runner import Recorder, greedy, runner_of
from tests.engine.zoo import NEW_TOKENS, Zoo

NEEDS = LayerNeeds(torch.float16, 6, 2, 64, 64, 16, 64, Reach(), capped=False, sinks=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer.fake_flashinfer())
    monkeypatch.setattr(attend_flashinfer, "_WORKSPACE_BYTES", 64)


def test_a_block_table_becomes_pages() -> None:
    tables = torch.tensor([[7, 9, 9, 9], [3, 1, 4, 1], [5, 5, 5, 5]])
    table = PageTable.of(tables, torch.tensor([17, 64, 16]), 16)
    assert table.indptr.tolist() == [0, 2, 6, 7]
    assert table.indices.tolist() == [7, 9, 3, 1, 4, 1, 5]
    assert table.last_page_len.tolist() == [1, 16, 16]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reach", [Reach(), Reach(window_tokens=9)], ids=["all", "window"])
def test_decodes_and_chunks_are_exact(reach: Reach, softcap: float | None) -> None:
    error = difference(FlashInferAttention(CPU), 6, LayerKv(2, 64, 64), reach, softcap, False, torch.float16, FEW)
    assert error < 3e-3


@pytest.mark.usefixtures("installed")
def test_it_is_tried_once_and_planned_once_for_a_kind_of_layer() -> None:
    backend = FlashInferAttention(CPU)
    assert backend.refuses(NEEDS) is None
    tried = list(fake_flashinfer.calls)
    assert tried.count("plan") == tried.count("run") == 2, "decodes and chunks"
    assert backend.refuses(NEEDS) is None
    assert fake_flashinfer.calls == tried


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (replace(NEEDS, sinks=True), "no sinks"),
        (replace(NEEDS, reach=Reach(chunk_tokens=8)), "chunked attention"),
        (replace(NEEDS, key_size=80, value_size=80), "heads of 64 or 128 or 256"),
        (replace(NEEDS, key_size=128), "keys and values alike"),
        (replace(NEEDS, dtype=torch.float32), "no float32"),
    ],
)
def test_what_it_cannot_do_it_says(needs: LayerNeeds, reason: str) -> None:
    assert reason in str(FlashInferAttention(CPU).refuses(needs))


@pytest.mark.usefixtures("installed")
def test_what_its_kernels_refuse_falls_to_the_next_backend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("strides of pages must be multiples\nof something")

    monkeypatch.setattr(fake_flashinfer.BatchDecodeWithPagedKVCacheWrapper, "plan", refuse)
    attention = DeviceAttention([FlashInferAttention(CPU), GatherAttention()])
    with caplog.at_level(logging.INFO):
        assert attention.choose(NEEDS).name == "gather"
    assert "not flashinfer: strides of pages must be multiples" in caplog.text


def test_where_it_is_not_installed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert "cannot be imported" in str(FlashInferAttention(CPU).refuses(NEEDS))


@pytest.mark.usefixtures("installed")
def test_steps_and_graphs_plan_anew_for_every_token(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's heads are small and its numbers wide, which the fake does not mind."""
    monkeypatch.setattr(attend_flashinfer, "_unfit", lambda needs: None)
    tiny, recorder = zoo("qwen3"), Recorder()
    runner = runner_of(tiny, FlashInferAttention(CPU), recorder)
    run = greedy(runner, tiny)
    while run.step():
        while runner.prepare_one():
            pass
    assert run.outputs == tiny.outputs
    assert runner.replays > NEW_TOKENS // 2
