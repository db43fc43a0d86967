"""The OpenAI HTTP API over the ``Frontend`` protocol of ``core.generation``.

Does not know: tokenizers, engines, processes, where tokens come from. Importing this package alone imports nothing.
"""
