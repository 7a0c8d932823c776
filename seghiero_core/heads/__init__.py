"""Heads: `forward([C1, C2, C3, C4]) -> (logits, embedding)`.

Each module of this package registers one head without importing torch; its network is in `networks`.
"""
