"""Backbones: `forward(x: B,3,H,W) -> [C1, C2, C3, C4]`, channels-first, at strides 4, 8, 16, 32.

Each module of this package registers one family without importing torch; its network is in `networks`.
"""
