"""From logits to a token, and when to stop."""
