"""The OpenAI HTTP API over the ``Frontend`` protocol of ``core.generation``.

Does not know: tokenizers, engines, processes, where tokens come from.
"""

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.serve import AddressError, bind, serve

__all__ = ["AddressError", "ServerOptions", "bind", "create_app", "serve"]
