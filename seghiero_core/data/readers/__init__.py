"""Readers: each module registers one `dataset.type` without importing torch, or the library that it needs."""
