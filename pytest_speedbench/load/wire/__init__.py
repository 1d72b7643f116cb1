"""How bytes are read: connection, kernel stamps, response, recording, events."""
