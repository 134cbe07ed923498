"""Results side by side: how scores are read, tables, ranks, pictures, the Markdown page."""
