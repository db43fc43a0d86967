"""What a simulation leaves behind: token times, metrics, traces."""
