"""What came of one streamed completion: token times as the client saw them, and the server's timeline.

The timeline is the object of ``X-Aegaeon-Timeline: 1``, in the last chunk's ``aegaeon`` key: ``arrival_s``,
``token_times_s``, ``spans`` (phase, start_s, end_s, instance) and ``now_s``, on the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from aegaeon.core.timeline import LatencyParts, Phase, PhaseSpan
from benchmark.command.errors import BenchmarkError


class ReplyError(BenchmarkError):
    """A request did not get what it asked for; the message is short, so that failures can be counted by it."""


@dataclass(slots=True)
class CompletionStream:
    """What came of one reply so far. ``chunks``: when each chunk with tokens came, and with how many."""

    chunks: list[tuple[float, int]] = field(default_factory=list)
    tokens: int = 0
    timeline: Mapping[str, Any] | None = None
    timeline_s: float = 0.0  # when it came

    def add(self, chunk: Mapping[str, Any], now_s: float) -> None:
        if "error" in chunk:
            raise ReplyError(str(chunk["error"].get("message", chunk["error"])))
        if chunk.get("aegaeon"):
            self.timeline, self.timeline_s = chunk["aegaeon"], now_s
        for choice in chunk.get("choices", ()):
            ids = choice.get("token_ids")
            count = len(ids) if ids is not None else int(bool(choice.get("text")))
            if count:
                self.chunks.append((now_s, count))
                self.tokens += count

    def token_times(self, expected: int) -> tuple[float, ...]:
        """When each token was here.

        A server that does not tell which tokens a chunk has may send several in one, or none where they are half a
        character; then its own token times, moved to this clock by the way that its timeline took, are the best
        estimate.
        """
        if self.tokens != expected:
            return self._server_times(expected)
        return tuple(time_s for time_s, count in self.chunks for _ in range(count))

    def _server_times(self, expected: int) -> tuple[float, ...]:
        times_s: Sequence[float] = self.timeline["token_times_s"] if self.timeline else ()
        if not self.timeline or len(times_s) != expected:
            raise ReplyError(f"short output: {max(self.tokens, len(times_s))} of {expected} tokens")
        offset_s = self.timeline_s - self.timeline["now_s"]
        return tuple(time_s + offset_s for time_s in times_s)

    def spans(self) -> tuple[PhaseSpan, ...]:
        spans = self.timeline["spans"] if self.timeline else ()
        return tuple(PhaseSpan(Phase(s["phase"]), s["start_s"], s["end_s"], s.get("instance") or "") for s in spans)

    def parts(self) -> LatencyParts | None:
        """The six parts of the request's life, as the server measured them; None if it told no timeline."""
        if not (self.timeline and self.timeline["token_times_s"]):
            return None
        times_s = self.timeline["token_times_s"]
        return LatencyParts.of(self.timeline["arrival_s"], times_s[0], times_s[-1], self.spans())


async def read_chunks(response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    """The JSON objects of a server-sent event stream; ends at [DONE], without which the stream was cut off."""
    done = False  # the rest is read all the same: only then the connection can serve another request
    async for line in _lines(response):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        done = done or data == b"[DONE]"
        if data and not done:
            yield _parse(data)
    if not done:
        raise ReplyError("stream cut off")


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines as the event stream format has them: text may hold what Unicode calls a line break."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


def _parse(data: bytes) -> Mapping[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise ReplyError("a chunk is not JSON") from error
    if not isinstance(chunk, dict):
        raise ReplyError("a chunk is not a JSON object")
    return chunk


def refusal(status: int, body: bytes) -> str:
    """A short name for a reply that is not 200."""
    try:
        error = json.loads(body)["error"]
        return f"HTTP {status}: {error.get('code') or error.get('type')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP {status}"
