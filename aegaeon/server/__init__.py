"""The OpenAI HTTP API over the ``Frontend`` protocol of ``core.generation``.

Does not know: tokenizers, engines, devices, schedulers, Ray. Importing this package alone imports nothing.
"""
