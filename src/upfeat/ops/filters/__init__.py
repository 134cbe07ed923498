"""Filters with weights of their own at every pixel: adaptive, guided, reassembling, sampling."""
