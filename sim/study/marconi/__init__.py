"""Prefix caching for hybrid models: the experiments of Marconi (Pan et al., MLSys 2025), with caches of our own."""
