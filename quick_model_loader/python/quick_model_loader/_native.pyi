from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, final

from torch import Tensor
from typing_extensions import Buffer

__version__: str

BLOCK_BYTES: int
"""Direct I/O works in multiples of this many bytes; memory aligned to it is read into without a copy."""

CHUNK_BYTES: int
"""The default size of a store's chunks."""

def inspect(path: str | PathLike[str]) -> Checkpoint:
    """Validate a checkpoint; headers are read, tensors are not.

    `path` is one file, or a directory: `model.safetensors`; else the shards of `model.safetensors.index.json`; else
    every `*.safetensors`, sorted by name. As in Transformers, all tensors of the shards count, those of the last shard
    where several have one, and entries of the index without a tensor mean nothing.

    Raises `IoError`, `NotACheckpointError`, `HeaderError`, `TruncatedError`, `IndexFileError`, `MissingShardError` or
    `DuplicateError`.
    """

@final
class Checkpoint:
    """A validated model on disk. Immutable; safe to share between threads."""

    @property
    def path(self) -> Path:
        """The path that was inspected."""
    @property
    def files(self) -> tuple[FileInfo, ...]:
        """The files in the order in which they are read."""
    @property
    def file_offsets(self) -> tuple[int, ...]:
        """Where each file begins in the buffer, in bytes; multiples of `BLOCK_BYTES`."""
    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> tensor, in the order of the files and of the data in them; read-only."""
    @property
    def total_bytes(self) -> int:
        """The sum of the files' lengths, headers included."""
    @property
    def buffer_bytes(self) -> int:
        """How many bytes of memory a load needs: the files, each rounded up to `BLOCK_BYTES`."""
    def read_into(
        self,
        address: int,
        capacity: int,
        *,
        threads: int | None = None,
        direct: bool | None = None,
        cancel: CancelToken | None = None,
    ) -> LoadReport:
        """Read every file verbatim to `address`, each at its `file_offsets`; the padding between files becomes zero.

        Blocks with the GIL released; Ctrl-C stops it (and cancels `cancel`). After an error the memory's content is
        undefined. `capacity` is the size of the memory in bytes: all of it must stay valid for writes, and unused by
        others, until the call returns. At an `address` that is a multiple of `BLOCK_BYTES` the disk writes straight
        into the memory.

        `threads`: how many read at once (default: one per core, 4 to 16). `direct`: None reads past the page cache
        what that does not hold; True reads all past it, where the file system can; False reads nothing past it.

        Raises `CapacityError`, `ChangedError`, `TruncatedError`, `CancelledError` or `IoError`; `ValueError` for an
        address of 0 or no threads.
        """
    def read_into_buffer(
        self,
        buffer: Buffer,
        *,
        threads: int | None = None,
        direct: bool | None = None,
        cancel: CancelToken | None = None,
    ) -> LoadReport:
        """As `read_into`, for a writable contiguous object with the buffer protocol; else `BufferError`."""
    def write_checksums(
        self, *, threads: int | None = None, direct: bool | None = None, cancel: CancelToken | None = None
    ) -> list[Path]:
        """Write the XXH3 checksums of every file beside it (`.xxh3`), and return where.

        Blocks with the GIL released; Ctrl-C stops it. Raises as `read_into`.
        """
    def verify(
        self, *, threads: int | None = None, direct: bool | None = None, cancel: CancelToken | None = None
    ) -> None:
        """Compare every file with the checksums beside it; as `write_checksums`, and `ChecksumError`."""

@final
class FileInfo:
    """One safetensors file of a checkpoint."""

    @property
    def path(self) -> Path:
        """Where it is."""
    @property
    def bytes(self) -> int:
        """Its length."""
    @property
    def header_bytes(self) -> int:
        """Where its header ends and its data begins."""
    @property
    def metadata(self) -> dict[str, str]:
        """The texts of its header's `__metadata__`."""

@final
class TensorInfo:
    """Where a tensor's bytes are and what they mean."""

    @property
    def name(self) -> str:
        """Its name, unique within the checkpoint."""
    @property
    def dtype(self) -> str:
        """The type of its elements, as the file names it: `BF16`, `F8_E4M3`, ..."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Its extent per dimension; empty for a scalar."""
    @property
    def file(self) -> int:
        """Which of `Checkpoint.files` holds it."""
    @property
    def begin(self) -> int:
        """Its first byte, counted from the beginning of the file (not always aligned to its dtype)."""
    @property
    def end(self) -> int:
        """The byte after its last, counted from the beginning of the file."""
    @property
    def nbytes(self) -> int:
        """`end - begin`."""
    def __hash__(self) -> int: ...

@final
class LoadReport:
    """What a load did."""

    @property
    def bytes(self) -> int:
        """How many bytes were read: `Checkpoint.total_bytes`."""
    @property
    def seconds(self) -> float:
        """How long it took."""
    @property
    def threads(self) -> int:
        """How many threads read."""
    @property
    def direct_bytes(self) -> int:
        """How many of the bytes came past the page cache."""
    @property
    def buffered_bytes(self) -> int:
        """How many came through the page cache."""

@final
class CancelToken:
    """Stops what it is given to, from any thread."""

    def __new__(cls) -> Self: ...
    def cancel(self) -> None:
        """Ask the loads to stop; they raise `CancelledError` within milliseconds. Idempotent."""
    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
    @property
    def bytes(self) -> int:
        """How many bytes were hashed or verified with this token so far."""

@final
class Store:
    """Many models in one arena of memory, shared with other processes.

    The arena is cut into chunks; files lie in it verbatim, so nothing is ever moved. Threads of the store's own fill
    it, in the order in which loads were asked for. When it is full the least recently used entries go, except those
    that are leased (somebody holds an `Entry`, a view of it, or an attachment) or pinned.
    """

    def __new__(
        cls,
        capacity: int,
        *,
        chunk_bytes: int = ...,
        threads: int | None = None,
        direct: bool | None = None,
        huge_pages: bool = True,
        prefault: bool = True,
    ) -> Self:
        """`capacity`: bytes, rounded up to chunks of `chunk_bytes` (a multiple of 2 MiB).

        What pages there are is tried out, and told by `stats`; `SmallPagesWarning` if they are small. `prefault` gives
        the whole arena its pages now, in the background; else a chunk gets them when it is first used. `threads` and
        `direct`: as for `Checkpoint.read_into`.

        Raises `CapacityError` if the machine has less memory, `IoError` if the operating system refuses.
        """
    @staticmethod
    def inherit(
        arena: int,
        journal: int,
        *,
        threads: int | None = None,
        direct: bool | None = None,
        prefault: bool = True,
    ) -> Store:
        """Go on with the arena of a store whose process has ended, given its `heirlooms`: no byte is read again.

        Entries are there whose files are what they were; their reports say that nothing was read. What others have
        attached of the old store is protected no longer: they must have ended, too. The descriptors stay the caller's.

        Raises `IoError` where these are no heirlooms.
        """
    def heirlooms(self) -> tuple[int, int]:
        """Two descriptors, arena and journal, which the caller passes to another process and closes.

        Whoever has them can write to the arena. The journal tells at any moment, also at that of a kill, which entries
        are whole. Raises `IoError` where there are no descriptors left.
        """
    def load(
        self,
        path: str | PathLike[str],
        key: str | None = None,
        *,
        verify: bool = False,
        deadline: float | None = None,
    ) -> Ticket:
        """Ask for a checkpoint under `key` (default: its absolute path). Returns at once.

        The ticket is done already if the entry is there and its files are what they were; if they changed it is loaded
        anew, and replaces the old one when it is complete. A load of it that is under way is joined. A load that finds
        no room waits until leases or pins are given up; `deadline` (seconds from now) ends that, and everything else.
        `verify` compares the content with the checksums that `write_checksums` left.

        Raises `KeyInUseError` if the key stands for another path, `ClosedError`; all else is told by the ticket.
        """
    def get(self, key: str, *, writable: bool = False) -> Entry:
        """Lease an entry; `KeyError` if there is none. `writable`: as for `attach`."""
    def keys(self) -> list[str]:
        """The keys of all entries, least recently used first."""
    def __contains__(self, key: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def pin(self, key: str) -> None:
        """Keep an entry, leased or not, until `unpin`; `KeyError` if there is none."""
    def unpin(self, key: str) -> None:
        """Undo `pin`."""
    def evict(self, key: str) -> bool:
        """Remove an entry: nobody finds it any more, and its memory is free when its last lease ends.

        True if that is now. Raises `KeyError`, or `PinnedError`.
        """
    def stats(self) -> StoreStats:
        """What is in the store and what it did so far."""
    def close(self) -> None:
        """Stop all loads (`ClosedError`) and threads. Entries that are leased stay readable, here and elsewhere."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class StoreStats:
    """What is in a store and what it did so far."""

    @property
    def capacity_bytes(self) -> int:
        """The size of the arena."""
    @property
    def chunk_bytes(self) -> int:
        """The size of a chunk."""
    @property
    def free_bytes(self) -> int:
        """How much belongs to no entry."""
    @property
    def prepared_bytes(self) -> int:
        """How much of the arena has its pages."""
    @property
    def huge_bytes(self) -> int:
        """How much of that has huge pages."""
    @property
    def pages(self) -> str:
        """`hugetlb` (set aside by the administrator), `collapsed` (assembled by the kernel) or `small`."""
    @property
    def direct(self) -> str:
        """When files are read past the page cache: `when cold`, `always` or `never`."""
    @property
    def threads(self) -> int:
        """How many threads read."""
    @property
    def entries(self) -> int:
        """Entries that can be leased."""
    @property
    def pinned_entries(self) -> int:
        """Those of them that are pinned."""
    @property
    def leases(self) -> int:
        """Leases, of evicted entries too; each attached process counts once per attachment."""
    @property
    def pending_loads(self) -> int:
        """Loads that are not over."""
    @property
    def loads(self) -> int:
        """Loads that read a checkpoint to its end."""
    @property
    def failed_loads(self) -> int:
        """Loads that failed or were given up."""
    @property
    def hits(self) -> int:
        """Loads that found the entry there."""
    @property
    def evictions(self) -> int:
        """Entries that were given up."""
    @property
    def direct_bytes(self) -> int:
        """Bytes that were read past the page cache."""
    @property
    def buffered_bytes(self) -> int:
        """Bytes that were read through it."""

@final
class Ticket:
    """A load that was asked for. Dropping it does not stop the load: that is how to fetch ahead.

    When the load is over the ticket holds the lease until `result` hands it out.
    """

    @property
    def key(self) -> str:
        """The key that the entry will have."""
    @property
    def path(self) -> Path:
        """What is loaded."""
    @property
    def progress(self) -> Progress:
        """How far it is."""
    def done(self) -> bool:
        """Whether it is over, well or not."""
    def cancel(self) -> bool:
        """Give it up: `result` raises `CancelledError` from now on, and the load stops unless others wait for it too.

        False if it was over already.
        """
    def cancelled(self) -> bool:
        """Whether it was given up."""
    def result(self, timeout: float | None = None) -> Entry:
        """Wait for the entry, at most `timeout` seconds (`TimeoutError`; the load goes on). The same object every time.

        Raises what the load failed of: what `inspect` and `Checkpoint.read_into` raise, `ChecksumError`,
        `DeadlineError`, `CancelledError`, `ClosedError`; `CapacityError` if the model is larger than the store.
        """
    def exception(self, timeout: float | None = None) -> Exception | None:
        """What it failed of, or None; waits as `result` does."""
    def add_done_callback(self, callback: Callable[[Ticket], object]) -> None:
        """Have `callback(self)` called when it is over: on a thread of the store, which must not be kept waiting (not
        for other loads, above all), or here and now if it is over already."""
    def fileno(self) -> int:
        """A descriptor, the ticket's own, that becomes readable when it is over, for `select` and event loops."""

@final
class Progress:
    """How far a load is."""

    @property
    def stage(self) -> str:
        """`queued`, `waiting` (for headers, or for room), `reading` or `done`."""
    @property
    def bytes(self) -> int:
        """How many bytes are there."""
    @property
    def total_bytes(self) -> int:
        """How many there will be; 0 until the headers were read."""

@final
class Entry:
    """A model in memory: a lease, and a look at it.

    The lease ends when this is closed or gone and all views (`torch`, `bytes`, memoryviews of the entry itself) are
    gone. Supports the buffer protocol (read-only): all files, one after the other, at `file_offsets`.

    Memory is shared with other processes, so it must not be written to: writing through a tensor is a segmentation
    fault, unless the entry was asked for as `writable`.
    """

    @property
    def key(self) -> str:
        """The name that it has in its store."""
    @property
    def path(self) -> Path:
        """The path that was loaded."""
    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Its files, in the order in which they lie in the memory."""
    @property
    def file_offsets(self) -> tuple[int, ...]:
        """Where each file begins in the memory; multiples of `BLOCK_BYTES`."""
    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> tensor, in the order in which they lie in the memory; read-only."""
    @property
    def nbytes(self) -> int:
        """The length of the memory."""
    @property
    def address(self) -> int:
        """Where the memory begins in this process; valid as long as the lease."""
    @property
    def report(self) -> LoadReport | None:
        """How it was loaded; None where it is attached."""
    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
    @property
    def owner_alive(self) -> bool:
        """Whether the process that owns the store is there. If not, what is mapped here stays as it is."""
    def offset(self, name: str) -> int:
        """Where a tensor begins in the memory, in bytes; `KeyError`."""
    def bytes(self, name: str) -> memoryview:
        """A tensor's bytes, without copying; `KeyError`."""
    def torch(self, name: str) -> Tensor:
        """A tensor, without copying; it keeps the lease.

        Raises `KeyError`, or `DtypeError` where torch has no such type. Torch knows no read-only tensors: it is up to
        you not to write (see above).
        """
    def torch_all(self) -> dict[str, Tensor]:
        """All tensors, as `torch`."""
    def torch_bytes(self) -> Tensor:
        """The whole memory as one tensor of bytes (`offset` says what lies where), as `torch`: for one copy of all."""
    def handle(self) -> Handle:
        """What another process needs to `attach`. It is no lease: keep this entry, or pin it, until that is done."""
    def plan(self, placements: Iterable[Placement]) -> CopyPlan:
        """Work out a copy of tensors, or parts of them, to memory of the caller's. Raises `PlacementError`."""
    def close(self) -> None:
        """End the lease, as far as this object is concerned. Idempotent."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class _EntryMemory:
    """The memory of an entry, for torch; it calls itself writable because torch knows no other tensors."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class Handle:
    """What another process of the same user needs to attach to an entry. Small, picklable, hashable."""

    def __new__(cls, socket: str, token: bytes, entry: int, key: str) -> Self: ...
    @property
    def key(self) -> str:
        """The entry's key."""
    def __hash__(self) -> int: ...

def attach(handle: Handle, *, writable: bool = False, timeout: float = 10.0) -> Entry:
    """Map an entry of another process's store into this one, without copying.

    The owner keeps the entry until the lease ends here, or this process dies; each attachment takes one descriptor in
    both. If the owner dies, what is mapped stays readable. `writable`: pages that are written to become this process's
    own, and nobody else sees them; else writing is a segmentation fault. `timeout`: seconds to wait for the owner.

    Raises `OwnerGoneError`, `EvictedError`, `AttachError` or `IoError`.
    """

@final
class Placement:
    """A part of a tensor, and where it goes."""

    def __new__(
        cls,
        tensor: str,
        address: int,
        capacity: int,
        *,
        dim: int | None = None,
        begin: int | None = None,
        end: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        pitch: int | None = None,
    ) -> Self:
        """The whole tensor; or elements `begin` up to `end` of dimension `dim`; or of its `world` equal parts number
        `rank`.

        It goes to `address`, where there are `capacity` bytes, packed: several placements with addresses in one piece
        of memory fill a fused parameter. `pitch` is the distance in bytes from row to row in the target, where rows do
        not follow each other; a row is what is contiguous in the part: everything from dimension `dim` on.
        """

@final
class CopyPlan:
    """A copy that was worked out; it keeps the lease, and may be used any number of times."""

    @property
    def nbytes(self) -> int:
        """How many bytes are copied."""
    @property
    def moves(self) -> int:
        """In how many moves: neighbours are joined."""
    def copy(self, *, threads: int | None = None, cancel: CancelToken | None = None) -> None:
        """Copy to memory of this process; returns when all is there, the GIL is free meanwhile.

        The targets must stay valid for writes, and unused by others, until then. Raises `CancelledError`.
        """
    def copy_to(self, device: CudaDevice, stream: int = 0) -> Transfer:
        """Submit the copies to a device, after what `stream` (a `CUstream`; 0 is the default one) has to do already.

        The targets must be addresses of the device, valid and unused by others until the transfer is done. From an
        arena that is registered the device reads by itself; else the bytes go through pinned buffers, which takes
        longer to submit. Raises `CudaError`.
        """

@final
class CudaDevice:
    """A CUDA device, through the driver that is found at run time."""

    def __new__(cls, ordinal: int = 0, *, library: str = ...) -> Self:
        """Raises `CudaError` if there is no driver, or no such device."""
    def register(self, entry: Entry) -> None:
        """Pin the whole arena that an entry lies in, once for all of its entries, as long as this device is open.

        Every page of the arena gets its memory by this; in a process that attached, wait until the owner's
        `stats().prepared_bytes` is its capacity. Raises `CudaError`; then copies go through pinned buffers.
        """

@final
class Transfer:
    """A copy under way; it keeps the lease until it is done. Dropping it waits."""

    def done(self) -> bool:
        """Whether all is copied. Raises `CudaError`."""
    def wait(self) -> None:
        """Wait until all is copied; the GIL is free meanwhile. Raises `CudaError`."""
    @property
    def event(self) -> int | None:
        """The `CUevent` that happens when all is copied, for other streams to wait for; None once it was waited for."""
