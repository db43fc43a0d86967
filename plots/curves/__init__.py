"""What figures are of: outcomes, curves, and numbers between bounds."""
