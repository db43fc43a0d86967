"""``python -m aegaeon``: the command line."""

from aegaeon.cli import main

main()
