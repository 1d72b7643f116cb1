"""Turns what a run found into text: for a terminal, for machines, for a page."""
