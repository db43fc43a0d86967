"""The weight loader beside the limits of the machine and its peers."""
