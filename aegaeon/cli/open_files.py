"""The limit on open files: raised as far as it goes, and told in time where that is not enough."""

from __future__ import annotations

import logging

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.descriptors import needed, raise_limit, shortage

logger = logging.getLogger(__name__)


def raise_file_limit(config: PoolConfig) -> None:
    """Raise the limit as far as makes sense. Raises ``ServiceError`` where the pool could not run with that."""
    need, limit = needed(config), raise_limit()
    message = shortage(need, limit)
    if message and limit is not None and limit < need.least:
        raise ServiceError(message)
    if message:
        logger.warning("%s", message)
