"""What runs where, for dashboards and for the curious."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter


def admin_router(state: Callable[[], dict[str, Any]]) -> APIRouter:
    """GET /admin/state."""
    router = APIRouter(prefix="/admin")

    @router.api_route("/state", methods=["GET", "HEAD"])
    async def read_state() -> dict[str, Any]:  # async: on the loop's own thread, where the state changes
        return state()

    return router
