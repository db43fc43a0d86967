"""Where the KV of one engine's sequences lies: vLLM's paged blocks, and the reservations of its Orca baselines."""
