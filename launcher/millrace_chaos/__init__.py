"""`millrace chaos`: a constant load whose every answer is checked, faults on top of it, and a table of what they cost.

It speaks HTTP only, with the standard library only, and knows nothing of the launcher's or the worker's code.
"""
