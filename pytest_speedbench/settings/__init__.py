"""What a run was asked to do: options, targets, and how they are read."""
