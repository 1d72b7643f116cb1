"""Drive N requests at a batch size, stamp every chunk as it arrives, decode afterwards.

`conversation.prepare` once for a cell's prompts, then `rounds.measure_rounds` once for each batch size.
"""
