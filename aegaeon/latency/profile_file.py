"""The JSON file of a latency profile: ``profiles/<device>/<model>.json``.

Does not know: where it lies, who looks it up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Literal, Self

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.errors import LatencyError
from aegaeon.latency.json_document import DocumentError, dump, parse

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Of ``LatencyProfile``, in seconds."""

    p0_s: float
    p1_s: float
    p2_s: float
    d0_s: float
    d1_s: float
    d2_s: float

    def __post_init__(self) -> None:
        if not all(map(isfinite, asdict(self).values())):
            raise ValueError(f"the coefficients must be finite numbers: {self}")

    @classmethod
    def of(cls, profile: LatencyProfile) -> Self:
        """The same numbers, rounded to six digits."""
        return cls(**{field.name: float(f"{getattr(profile, field.name):.6g}") for field in fields(cls)})

    @property
    def profile(self) -> LatencyProfile:
        """As the core's type."""
        return LatencyProfile(**asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """Where the profile was measured, from and to: tokens of a prefill and of a request, requests of a decode batch."""

    prefill_tokens: Span
    context_tokens: Span
    decode_batch: Span

    def __post_init__(self) -> None:
        for name, span in asdict(self).items():
            _require_counts((name, least) for least in span)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """Mean absolute errors in percent, the points behind them, and those that were dropped as impossible."""

    prefill_percent: float
    decode_percent: float
    prefill_points: int
    decode_points: int
    dropped_points: int = 0

    def __post_init__(self) -> None:
        _require_counts((("prefill_points", self.prefill_points), ("decode_points", self.decode_points)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the numbers come from."""

    source: str
    licence: str
    date: str
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Switching:
    """Seconds lost between a turn's last token and the next turn's first, beyond the step itself.

    ``hand_over_s``: the next model's weights are on the device; else they come from host memory or from disk first.
    """

    hand_over_s: float
    from_host_s: float
    from_disk_s: float

    def __post_init__(self) -> None:
        if not all(isfinite(seconds) and seconds >= 0 for seconds in asdict(self).values()):
            raise ValueError(f"seconds must be finite and not negative: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """Of every layer alike."""

    layers: int
    kv_heads: int
    head_size: int
    element_bytes: int = 2

    def __post_init__(self) -> None:
        _require_counts(asdict(self).items())

    @classmethod
    def of(cls, shape: KvShape) -> Self:
        """Of a shape whose layers are all the same."""
        first = shape.layers[0]
        return cls(
            layers=len(shape.layers),
            kv_heads=first.kv_heads,
            head_size=first.key_size,
            element_bytes=shape.element_bytes,
        )

    @property
    def shape(self) -> KvShape:
        """As the core's type."""
        layer = LayerKv(self.kv_heads, self.head_size, self.head_size)
        return KvShape((layer,) * self.layers, element_bytes=self.element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFile:
    """A profile as it is stored. ``weight_bytes`` are of the whole model, whatever ``tp`` (devices that share it).

    ``estimated`` profiles come from the roofline and have no fit; measured ones have ``validity``.
    """

    format: Literal["aegaeon-latency-profile-1"] = "aegaeon-latency-profile-1"
    model: str
    aliases: tuple[str, ...] = ()
    device: str
    tp: int = 1
    estimated: bool = False
    coefficients: Coefficients
    validity: Validity | None = None
    fit: FitError | None = None
    batched_token_cap: int | None = None
    switching: Switching | None = None
    weight_bytes: int
    kv: KvGeometry
    max_context_tokens: int
    provenance: Provenance
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("tp", "weight_bytes", "max_context_tokens")
        _require_counts((name, getattr(self, name)) for name in counts)
        if self.batched_token_cap is not None:
            _require_counts((("batched_token_cap", self.batched_token_cap),))
        if self.estimated and self.fit is not None:
            raise ValueError("an estimated profile has no fit")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``LatencyError`` that names the file and what is wrong in it."""
        try:
            return parse(cls, path.read_bytes())
        except DocumentError as error:
            raise LatencyError(f"{path} is not a latency profile: {error}") from None
        except OSError as error:
            raise LatencyError(f"cannot read the latency profile {path}: {error}") from None

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".json.part")
        draft.write_text(dump(self), "utf-8")
        draft.replace(path)


def _require_counts(counts: Iterable[tuple[str, int]]) -> None:
    for name, count in counts:
        if count < 1:
            raise ValueError(f"{name}: must be at least 1, got {count}")
