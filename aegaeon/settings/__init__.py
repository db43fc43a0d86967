"""The pool's configuration from flags, environment and ``pool.yaml``: ``aegaeon.settings.load.load_settings``.

Does not know: torch, Ray, the runtime. Importing this package imports nothing heavy; ``load`` brings pydantic in.
"""
