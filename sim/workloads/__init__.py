"""Workloads whose requests begin alike: conversations, recorded or made up."""
