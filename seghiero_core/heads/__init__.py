"""Heads: `forward([C1, C2, C3, C4]) -> (logits, embedding)`.

Every module of this folder registers one head and stays free of torch; its network lies in `networks`.
"""
