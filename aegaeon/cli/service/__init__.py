"""What ``aegaeon serve`` runs: a supervisor, a pool process, a server process, and what they say to each other."""
