"""Backbones: `forward(x: B,3,H,W) -> [C1, C2, C3, C4]`, channels-first, at strides 4, 8, 16, 32.

Every module of this folder registers one family and stays free of torch; its network lies in `networks`.
"""
