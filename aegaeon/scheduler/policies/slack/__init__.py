"""The policy ``slack``: every model as late as its deadlines allow, many models resident, loads ahead of need."""
