"""Tests of upfeat; the folders mirror the package."""
