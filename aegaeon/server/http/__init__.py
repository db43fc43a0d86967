"""HTTP as any server of the world needs it: limits, bodies, keys, errors, connections."""
