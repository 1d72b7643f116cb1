"""Starting a server and ending it: command, process, port, log, hardware."""
