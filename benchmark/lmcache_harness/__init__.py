"""LMCache's test harness, against pools of this project: the same command, columns and usual cases."""
