"""Systems that switch models between requests, not tokens: what the pool is compared with."""
