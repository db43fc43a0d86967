"""How connections are taken: as everywhere."""

from aegaeon.accept import accept as accept
