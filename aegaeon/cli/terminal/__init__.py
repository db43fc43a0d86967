"""What commands share: flags, the console, progress, logs, how they fail."""
