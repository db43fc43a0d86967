"""What every backend is made of: the protocol, address spaces, copies under way, shared and pinned memory."""
