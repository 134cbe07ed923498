"""The papers' tables, as printed."""
