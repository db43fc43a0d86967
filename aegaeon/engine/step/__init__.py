"""One step of a model: weights bound to pages, packed, run."""
