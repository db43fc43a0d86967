"""A device as the engine sees it: pages, stable addresses, streams, events.

Does not know: models, KV layout, scheduling; backends do not know each other. Imports the standard library, torch and
``aegaeon.core`` only.
"""
