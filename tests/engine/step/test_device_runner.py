"""Steps as a device runs them: the tokens of ``generate()``, and nothing that a graph could not repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.architecture.buffers import move_computed_buffers
from aegaeon.engine.attention.attend_gather import GatherAttention
from aegaeon.engine.attention.attend_triton import TritonAttention
from aegaeon.engine.attention.device_attention import AttentionBackend, DeviceAttention
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.device_runner import DeviceRunner, GraphLimits
from aegaeon.engine.step.graph_shelf import GraphShelf
from aegaeon.engine.step.model import Model
from tests.engine.greedy import POISON, Greedy, blocks_of
from tests.engine.zoo import ARCHITECTURES, NEW_TOKENS, TinyModel, Zoo, write_config

SLABS = 12
CONTEXT_TOKENS = 256


@dataclass
class Repeated:
    """A graph that does the work again, into the same output: as blind to anything new as a real one."""

    work: Callable[[], Tensor]
    output: Tensor
    size_bytes: int

    def replay(self) -> None:
        self.output.copy_(self.work())


@dataclass
class Recorder:
    """A ``GraphCapture`` without a GPU. A replay is ``saving`` faster than the work itself."""

    saving: float = 0.5
    size_bytes: int = 10
    captured: list[Repeated] = field(default_factory=list)

    def capture(self, work: Callable[[], Tensor]) -> Repeated:
        self.captured.append(Repeated(work, work().clone(), self.size_bytes))
        return self.captured[-1]

    def measure_s(self, work: Callable[[], object]) -> float:
        replays = [graph.replay for graph in self.captured]
        return 1.0 - self.saving if work in replays else 1.0


def runner_of(
    tiny: TinyModel,
    backend: AttentionBackend,
    capture: Recorder | None = None,
    shelf: GraphShelf | None = None,
    limits: GraphLimits | None = None,
) -> DeviceRunner:
    facts = inspect_model(tiny.path, dtype="float32")
    model = Model(tiny.path, dtype="float32", device=torch.device("cpu"))
    model.bind(tiny.weights)
    attention = DeviceAttention([backend])
    shelf, limits = GraphShelf(1000) if shelf is None else shelf, limits or GraphLimits(1)
    return DeviceRunner(model, facts.kv_shape, attention, CONTEXT_TOKENS, capture, shelf, limits)


def greedy(runner: DeviceRunner, tiny: TinyModel, new_tokens: int = NEW_TOKENS) -> Greedy:
    """On memory full of NaN, but for the block that takes the padding."""
    slab_bytes = 2 * runner.kv_shape.block_bytes + 40
    memory = torch.full((slab_bytes * SLABS + runner.kv_shape.block_bytes,), POISON, dtype=torch.uint8)
    memory[slab_bytes * SLABS :] = 0
    arena = KvArena(memory, slab_bytes, trash=slab_bytes * SLABS)
    blocks = blocks_of(runner.kv_shape, slab_bytes, range(SLABS))
    return Greedy(runner, arena, blocks, tiny.prompts, new_tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_and_graphs_equal_generate(zoo: Zoo, name: str) -> None:
    tiny, recorder = zoo(name), Recorder()
    runner = runner_of(tiny, GatherAttention(), recorder)
    run = greedy(runner, tiny)
    while run.step():
        while runner.prepare_one():
            pass
    assert run.outputs == tiny.outputs
    assert runner.graphs
    assert runner.replays > NEW_TOKENS // 2


@pytest.mark.parametrize("name", ["gpt_oss-sinks", "deepseek_v2-mla"])
def test_the_kernels_give_the_same_tokens(zoo: Zoo, name: str) -> None:
    tiny = zoo(name)
    run = greedy(runner_of(tiny, TritonAttention(), Recorder()), tiny, new_tokens=4)
    assert run.run() == [output[:4] for output in tiny.outputs]


def test_graphs_hold_across_switches_to_the_same_addresses(zoo: Zoo) -> None:
    tiny = zoo("qwen3")
    memory = {name: weight.clone() for name, weight in tiny.weights.items()}
    recorder = Recorder()
    runner = runner_of(tiny, GatherAttention(), recorder)
    runner.model.bind(memory)
    run = greedy(runner, tiny)
    while run.step():
        while runner.prepare_one():
            pass
        runner.model.unbind()
        assert not runner.prepare_one()
        for weight in memory.values():
            weight.fill_(float("nan"))
        for name, weight in memory.items():
            weight.copy_(tiny.weights[name])
        runner.model.bind(memory)
    assert run.outputs == tiny.outputs
    assert runner.replays > NEW_TOKENS // 2


def test_graphs_are_forgotten_when_weights_come_back_elsewhere(zoo: Zoo) -> None:
    tiny, shelf = zoo("llama"), GraphShelf(1000)
    runner = runner_of(tiny, GatherAttention(), Recorder(), shelf)
    run = greedy(runner, tiny)
    while not runner.graphs:
        run.step()
        runner.prepare_one()
    runner.model.bind({name: weight.clone() for name, weight in tiny.weights.items()})
    run.run()
    assert run.outputs == tiny.outputs
    assert len(shelf) == 0


@pytest.mark.parametrize(
    ("recorder", "limits", "budget_bytes"),
    [
        (Recorder(saving=0.01), GraphLimits(1), 1000),
        (Recorder(), GraphLimits(1), 5),
        (Recorder(), GraphLimits(uses=1000), 1000),
        (Recorder(), GraphLimits(1, most_rows=0), 1000),
    ],
    ids=["saves too little", "too large", "used too seldom", "too many rows"],
)
def test_what_does_not_pay_stays_eager(zoo: Zoo, recorder: Recorder, limits: GraphLimits, budget_bytes: int) -> None:
    tiny = zoo("llama")
    runner = runner_of(tiny, GatherAttention(), recorder, GraphShelf(budget_bytes), limits)
    run = greedy(runner, tiny)
    while run.step():
        while runner.prepare_one():
            pass
    assert run.outputs == tiny.outputs
    assert (runner.replays, runner.graphs) == (0, ())


def test_graphs_beyond_the_budget_drive_out_the_oldest(zoo: Zoo) -> None:
    shelf = GraphShelf(25)
    graphs = [Repeated(lambda: torch.zeros(1), torch.zeros(1), 10) for _ in range(3)]
    assert all(shelf.put(("model", index), graph) for index, graph in enumerate(graphs[:2]))
    assert shelf.get(("model", 0)) is graphs[0]
    assert shelf.put(("model", 2), graphs[2])
    assert shelf.get(("model", 1)) is None
    assert (len(shelf), shelf.used_bytes) == (2, 20)
    shelf.drop("another")
    assert len(shelf) == 2
    shelf.drop("model")
    assert shelf.used_bytes == 0


def test_padding_needs_a_block_of_its_own(zoo: Zoo) -> None:
    tiny = zoo("llama")
    runner = runner_of(tiny, GatherAttention())
    slab_bytes = 2 * runner.kv_shape.block_bytes
    arena = KvArena(torch.zeros(slab_bytes, dtype=torch.uint8), slab_bytes)
    with pytest.raises(ValueError, match="no room for padding"):
        runner.step([SequenceSlice([1], 0, [0])], arena)
    with pytest.raises(ValueError, match="behind whole slabs"):
        KvArena(torch.zeros(slab_bytes, dtype=torch.uint8), slab_bytes, trash=slab_bytes)


# --- graph safety ---------------------------------------------------------------------------------------------------


class NothingCrosses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses whatever moves between host and device: a graph would repeat it with old values, or cannot hold it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        kinds = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
        assert kinds <= {"cuda"}, f"{func} touches the host"
        scalars = {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        assert scalars <= {"cuda"} or func is torch.ops.aten.lift_fresh.default, f"{func} computes on the host"
        return result


class SafeCapture:
    """Watches captured work. Looking at a value raises by itself: fake tensors have none."""

    captured = 0

    def capture(self, work: Callable[[], Tensor]) -> Repeated:
        with NothingCrosses():
            output = work()
        self.captured += 1
        return Repeated(lambda: output, output, 0)

    def measure_s(self, work: Callable[[], object]) -> float:
        return 0.5 if self.captured else 1.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_decode_step_can_be_captured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there: FakeTensor knows devices and shapes, and refuses to give a value away."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))  # experts ask what it can do
    path = write_config(ARCHITECTURES[name](), tmp_path / name)
    facts = inspect_model(path, dtype="bfloat16")
    block_bytes = facts.kv_shape.block_bytes
    capture, device = SafeCapture(), torch.device("cuda", 0)
    model = Model(path, dtype="bfloat16")
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_computed_buffers(model.modules, device)
        model.bind(
            {name: torch.empty(spec.shape, dtype=spec.dtype, device=device) for name, spec in model.tensors.items()}
        )
        arena = KvArena(torch.empty(5 * block_bytes, dtype=torch.uint8, device=device), block_bytes, 4 * block_bytes)
        runner = DeviceRunner(
            model,
            facts.kv_shape,
            DeviceAttention([GatherAttention()]),
            CONTEXT_TOKENS,
            capture,
            GraphShelf(1000),
            GraphLimits(1),
        )
        logits = runner.step([SequenceSlice([3], row + 1, [row * block_bytes]) for row in range(3)], arena)
        assert logits.shape == (3, facts.vocab_size)
        assert runner.prepare_one()
    assert capture.captured == 1
