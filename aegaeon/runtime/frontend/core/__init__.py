"""A frontend without its connections, its loop and its text: which request is where, and what becomes of it. Pure."""
