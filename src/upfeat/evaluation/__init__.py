"""Measuring upsamplers: what they cost, and later what they are worth."""
