"""An instance without its device and its rings: turns, their members, what is said of them. Pure."""
