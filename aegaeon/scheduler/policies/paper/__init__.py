"""The policy ``aegaeon``: the one of the paper (SOSP 2025), prefill in groups and decode in rounds of turns."""
