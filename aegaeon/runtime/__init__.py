"""The world of real processes: driver, instances, frontend, and the links between them.

Does not know: policy (``scheduler/`` decides), HTTP (``server/`` speaks it).
"""
