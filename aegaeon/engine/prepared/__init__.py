"""What is known of a model once it has been looked at: facts for processes that have no torch."""
