"""Operators on each pixel of a map by itself: products, norms, residual blocks, positions."""
