"""A loopback server that is faster than the client, and the client measured against it."""
