"""What all benchmark commands share: one way to run, one way to be interrupted, what a result file begins with."""
