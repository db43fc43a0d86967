"""The OpenAI HTTP API over the ``Frontend`` protocol of ``core.generation``.

Does not know: tokenizers, engines, processes, where tokens come from.
"""

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.limits import ConnectionLimits, RequestLimits
from aegaeon.server.serve import AddressError, bind, serve

__all__ = ["AddressError", "ConnectionLimits", "RequestLimits", "ServerOptions", "bind", "create_app", "serve"]
