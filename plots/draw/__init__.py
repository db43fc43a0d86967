"""How things are drawn: the looks of systems, and the kinds of plots."""
