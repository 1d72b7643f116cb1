"""Drive N requests at a batch size, stamp every chunk as it arrives, decode afterwards.

`conversation.prepare` once for a cell's prompts, then `rounds.record_round` for each round.
"""
