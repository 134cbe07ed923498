"""The command ``upfeat``: parse, call, print."""

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of the script ``upfeat``."""
    from upfeat.cli.app import app

    app()
