"""The JSON file of a latency profile: ``profiles/<device>/<model>.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.errors import LatencyError

Count = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Span = tuple[Count, Count]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Coefficients(_Part):
    """The coefficients of a ``LatencyProfile``, in seconds."""

    p0_s: Finite
    p1_s: Finite
    p2_s: Finite
    d0_s: Finite
    d1_s: Finite
    d2_s: Finite

    @classmethod
    def of(cls, profile: LatencyProfile) -> Self:
        """The same numbers, rounded to six digits."""
        return cls(**{name: float(f"{getattr(profile, name):.6g}") for name in cls.model_fields})

    @property
    def profile(self) -> LatencyProfile:
        """As the core's type."""
        return LatencyProfile(**self.model_dump())


class Validity(_Part):
    """Where the profile was measured, from and to: tokens of a prefill and of a request, requests of a decode batch."""

    prefill_tokens: Span
    context_tokens: Span
    decode_batch: Span


class FitError(_Part):
    """Mean absolute errors in percent, the points behind them, and those that were dropped as impossible."""

    prefill_percent: float
    decode_percent: float
    prefill_points: Count
    decode_points: Count
    dropped_points: int = 0


class Provenance(_Part):
    """Where the numbers come from."""

    source: str
    licence: str
    date: str
    tool: str


class Switching(_Part):
    """Seconds lost between a turn's last token and the next turn's first, beyond the step itself.

    ``hand_over_s``: the next model's weights are on the device; else they come from host memory or from disk first.
    """

    hand_over_s: NotNegative
    from_host_s: NotNegative
    from_disk_s: NotNegative


class Copying(_Part):
    """Bytes per second between host and device: of a large copy, and of KV in blocks, in and out.

    Of a processor that uses weights and KV where they lie, what copying them would reach.
    """

    weights_in_bytes_per_s: Positive
    kv_in_bytes_per_s: Positive
    kv_out_bytes_per_s: Positive


class KvGeometry(_Part):
    """The KV geometry of a model whose layers are all alike."""

    layers: Count
    kv_heads: Count
    head_size: Count
    element_bytes: Count = 2

    @classmethod
    def of(cls, shape: KvShape) -> Self:
        """The geometry of a shape whose layers are all the same."""
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


class ProfileFile(_Part):
    """A profile as it is stored. ``weight_bytes`` are of the whole model, whatever ``tp`` (devices that share it).

    ``estimated`` profiles come from the roofline and have no fit; measured ones have ``validity``.
    """

    format: Literal["aegaeon-latency-profile-1"] = "aegaeon-latency-profile-1"
    model: str
    aliases: tuple[str, ...] = ()
    device: str
    tp: Count = 1
    estimated: bool = False
    coefficients: Coefficients
    validity: Validity | None = None
    fit: FitError | None = None
    batched_token_cap: Count | None = None
    switching: Switching | None = None
    copying: Copying | None = None
    weight_bytes: Count
    kv: KvGeometry
    max_context_tokens: Count
    provenance: Provenance
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _a_fit_is_no_estimate(self) -> Self:
        if self.estimated and self.fit is not None:
            raise ValueError("an estimated profile has no fit")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``LatencyError`` that names the file and what is wrong in it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            lines = (f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors())
            raise LatencyError(f"{path} is not a latency profile: {'; '.join(lines)}") from None
        except OSError as error:
            raise LatencyError(f"cannot read the latency profile {path}: {error}") from None

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".json.part")
        draft.write_text(self.model_dump_json(indent=2, exclude_defaults=False, exclude_none=True) + "\n", "utf-8")
        draft.replace(path)
