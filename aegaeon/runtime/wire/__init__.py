"""What processes of a pool say to each other, and how it gets there: messages, links, rings, heartbeats."""
