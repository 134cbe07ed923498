"""Attention whose values stay raw: over all cells, a window, a neighbourhood, or given offsets."""
