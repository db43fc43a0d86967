"""The experiments of vLLM's artifact (SOSP 2023), simulated: paged KV against the Orca baselines on one engine."""
