"""A figure for each benchmark of this project, from its result file."""
