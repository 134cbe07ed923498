"""Measuring upsamplers: what they cost, and what they are worth in a task."""
