"""Who is stuck, who is suspected, what is tried again and when: the rules by which a node gets well."""
