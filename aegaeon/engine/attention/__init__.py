"""Attention over paged KV, and what of a batch it needs: tables, lanes, workspaces, kernels."""
