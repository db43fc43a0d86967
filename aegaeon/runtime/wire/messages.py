"""Messages between frontend, driver and instances. Plain data; who sends what to whom is in the section titles.

A request is submitted by a frontend, scheduled by the driver of a node, and run by that node's instances; its tokens go
from instance to frontend directly.

A ring keeps its order; rings have none among each other. ``docs/messages.md`` lists the pairs that may come in either
order, and what makes both right.
"""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.beams import BeamState
from aegaeon.core.command import RejectReason
from aegaeon.core.event import TurnEndReason
from aegaeon.core.generation import FailureCause, FinishReason
from aegaeon.core.instance import Role
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.core.timeline import PhaseSpan
from aegaeon.core.turn_timing import TurnTiming
from aegaeon.runtime.wire.model_failure import FailureKind
from quick_model_loader import Handle

# --- frontend -> driver ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KvNames:
    """What the KV of a prompt is called (``aegaeon.memory.token_hash``): its root, and its whole blocks, in order."""

    root: bytes
    blocks: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request, or one that another driver began: then ``generated_ids`` are what its client has been given, and
    are final. ``sampling.seed`` is always set. ``after``: a request with the same prompt that was sent before.
    ``cached_tokens``: as in ``Begun``, of an earlier try; None where it has not begun before."""

    request: Request
    frontend_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    names: KvNames
    generated_ids: tuple[int, ...] = ()
    after: str | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request's client went away, or has what it wanted."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Answer to ``Interrupted``: the tokens that the client has been given. They are final."""

    request_id: str
    generated_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttachFrontend:
    """A frontend takes tokens at this descriptor server, under the names ``tokens:<instance key>``."""

    frontend_id: str
    address: str


@dataclass(frozen=True, slots=True)
class DetachFrontend:
    """A frontend goes away, and its requests with it. The driver tells its instances so, also of one that died."""

    frontend_id: str


# --- driver -> frontend ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is queued."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The request is in a turn, the first that this driver gave it: from now on the driver may die of it.
    ``cached_tokens``: of its prompt, whose KV was there already."""

    request_id: str
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """The scheduler turned the request away, or gave it up."""

    request_id: str
    reason: RejectReason
    detail: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed inside the serving system."""

    request_id: str
    reason: str
    cause: FailureCause = FailureCause.ENGINE


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The instance that ran the request died: say what the client has, so that it can go on."""

    request_id: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model was quarantined (``failure`` says why, and ``retry_s`` when it is tried again), or is back.

    ``awaits_files``: it is tried again only when its files have changed; ``retry_s`` is when they are looked at next.
    """

    model: str
    failure: str | None
    retry_s: float | None = None
    awaits_files: bool = False


@dataclass(frozen=True, slots=True)
class InstanceGone:
    """An incarnation has died, and every ``Interrupted`` that this takes was sent: its ring can be closed."""

    instance_key: str


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One instance as seen by its driver.

    ``trouble``: what is wrong with it, empty where nothing is; ``for_s`` is how long its state has been so.
    """

    instance_id: str
    role: Role
    model: str | None
    resident: tuple[str, ...]
    requests: int
    alive: bool
    pid: int
    turns: int
    switches: int
    trouble: str = ""
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class KvCounts:
    """A node's slab cache: bytes of blocks that requests use, of those that are kept for others, of slabs that have a
    shape, and of all; and how many kept blocks have had to give way."""

    used_bytes: int
    kept_bytes: int
    assigned_bytes: int
    total_bytes: int
    evicted_blocks: int


@dataclass(frozen=True, slots=True)
class DiskCounts:
    """KV on a node's disk: bytes that it takes and may take, blocks, and those that have had to give way. Since the
    driver started: bytes written, requests for which something was read, and tokens and bytes of that."""

    used_bytes: int
    total_bytes: int
    blocks: int
    evicted_blocks: int
    written_bytes: int
    hits: int
    read_tokens: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class NodeState:
    """What runs where on a node; sent when it changes, a few times a second at most.

    ``prompt_tokens``: of all requests that have begun since the driver started; ``cached_tokens``: of these, with KV
    that was there already. ``disk``: None where no KV is kept on disk.
    """

    now_s: float
    instances: tuple[InstanceState, ...]
    waiting: tuple[tuple[str, int], ...]
    running: tuple[tuple[str, int], ...]
    kv: KvCounts
    prompt_tokens: int
    cached_tokens: int
    weights_cached: tuple[str, ...]
    weights_bytes: int
    disk: DiskCounts | None = None


# --- driver -> instance ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KvBranch:
    """A block of the slab cache that is another's, and whose first ``tokens`` are those that a request goes on with."""

    block: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SequenceState:
    """All that an instance needs to go on with a request: ``token_ids[:prompt_tokens]`` are the prompt, of which
    ``cached_tokens`` had not to be computed for it.

    ``branch``: to be copied to the block of its table that follows on ``kv_tokens``; it is there until the instance
    next says how far the request has come. ``beams``: of a search by beams that has begun; ``token_ids`` are the prompt
    then, and ``kv_tokens`` count its whole blocks."""

    request_id: str
    frontend_id: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    kv_tokens: int
    sampling: SamplingParams
    cached_tokens: int = 0
    branch: KvBranch | None = None
    beams: BeamState | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A request in a turn: its block table, and its state unless the instance has it already."""

    request_id: str
    blocks: tuple[int, ...]
    state: SequenceState | None = None


@dataclass(frozen=True, slots=True)
class RunTurn:
    """Carry out a ``StartTurn``; ``issued_s`` is when the driver sent it."""

    turn_id: int
    model: str
    prefill: tuple[Member, ...]
    decode: tuple[Member, ...]
    quota_s: float | None
    keep_prefilled: bool
    issued_s: float


@dataclass(frozen=True, slots=True)
class JoinTurn:
    """Carry out an ``ExtendTurn``."""

    turn_id: int
    model: str
    prefill: tuple[Member, ...]
    decode: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class StopTurn:
    """Carry out an ``EndTurn``."""

    turn_id: int


@dataclass(frozen=True, slots=True)
class HostWeights:
    """A model's weights are in the host cache: attach to ``handle``. Leased until ``WeightsReturned``."""

    model: str
    lease_id: int
    handle: Handle


@dataclass(frozen=True, slots=True)
class EvictModel:
    """Drop a model's weights."""

    model: str


@dataclass(frozen=True, slots=True)
class EvictDeviceKv:
    """Drop the device copies of these requests' KV."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchKv:
    """Bring in the KV of requests that are in no turn, ahead of one."""

    model: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Leave these requests alone from the next step on; answered by ``Forgotten``."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget these requests, which are in no turn; not answered."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GrantBlocks:
    """More blocks at the end of a request's block table."""

    request_id: str
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the process in an orderly way."""


# --- instance -> driver ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The instance is ready."""

    instance_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the instance does next in its turn: a step of these requests, or, where there are none, binding its model.

    Sent when it changes, so that who did what is known when the instance dies of it.
    """

    turn_id: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request has come since the driver last heard: tokens made, and KV that is safe in the slab cache.

    ``beams``: of a search by beams that has begun. Their KV is safe, too, where the request has left its turn, or that
    has ended."""

    request_id: str
    new_ids: tuple[int, ...]
    kv_tokens: int
    beams: BeamState | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The first token is out. The prompt's KV is in the slab cache where the request leaves the turn; else it is on its
    way, and ``progress`` says how much is there."""

    turn_id: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class SequenceFinished:
    """The last token is out; the instance has let go of everything."""

    turn_id: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class SequenceFailed:
    """The request cannot go on; the instance has let go of everything."""

    turn_id: int
    request_id: str
    reason: str
    cause: FailureCause = FailureCause.ENGINE


@dataclass(frozen=True, slots=True)
class TurnOver:
    """The turn has ended; ``progress`` of the members that remain. ``unfinished``: those whose prompt is not done."""

    turn_id: int
    reason: TurnEndReason
    progress: tuple[Progress, ...]
    unfinished: tuple[str, ...]
    switched: bool
    timing: TurnTiming | None = None


@dataclass(frozen=True, slots=True)
class NeedBlocks:
    """A member will soon hold ``tokens`` tokens."""

    turn_id: int
    request_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The requests' blocks are no longer touched; ``progress`` of those that were there."""

    request_ids: tuple[str, ...]
    progress: tuple[Progress, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightsReturned:
    """The lease of a model's host weights is over."""

    model: str
    lease_id: int


@dataclass(frozen=True, slots=True)
class WeightsRefused:
    """The model's weights cannot be used; the lease is over, unless it was given back before (None)."""

    model: str
    lease_id: int | None
    reason: str
    kind: FailureKind = FailureKind.FILES


# --- instance -> frontend -------------------------------------------------------------------------------------------


TokenItem = tuple[str, int, int] | tuple[str, int, int, float]
"""Request id, index of the token in the output, token id; its log probability, of those that are scored."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One step's tokens."""

    time_s: float
    items: tuple[TokenItem, ...]


@dataclass(frozen=True, slots=True)
class Spans:
    """Part of a request's timeline, measured by an instance."""

    request_id: str
    spans: tuple[PhaseSpan, ...]


@dataclass(frozen=True, slots=True)
class BeamOutput:
    """One output of a search by beams."""

    token_ids: tuple[int, ...]
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Finished:
    """The request's last token is out: it has ``generated_tokens`` in all. ``cached_tokens``: as in ``Begun``.

    ``outputs``: of a search by beams, the best one first. No ``Tokens`` tell of them."""

    request_id: str
    reason: FinishReason
    generated_tokens: int
    cached_tokens: int = 0
    outputs: tuple[BeamOutput, ...] = ()


# --- who takes what: closed, so that whoever a new message may reach must handle it -----------------------------------

FromFrontend = Submit | Cancel | Resume | AttachFrontend | DetachFrontend
FromInstance = (
    Started
    | Attempt
    | Prefilled
    | SequenceFinished
    | SequenceFailed
    | TurnOver
    | NeedBlocks
    | Forgotten
    | WeightsReturned
    | WeightsRefused
)
ToInstance = (
    RunTurn
    | JoinTurn
    | StopTurn
    | HostWeights
    | EvictModel
    | EvictDeviceKv
    | FetchKv
    | Forget
    | Discard
    | GrantBlocks
    | AttachFrontend
    | DetachFrontend
    | Shutdown
)
Output = Tokens | Spans | Finished
"""Of an instance, to frontends."""

ToFrontend = Output | Accepted | Begun | Rejected | Failed | Interrupted | ModelState | InstanceGone | NodeState
"""Of the driver, which may send ``Finished`` too, and of instances."""
