"""Write docs/reproduce.md from docs/reproduce/*.json, the records of small runs.

    python tools/reproduce_page.py            # write
    python tools/reproduce_page.py --check    # exit 1 if the page is out of date

A record is what ``upfeat reproduce NAME --small --out DIR`` leaves in DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upfeat._files import write_bytes
from upfeat.evaluation.papers.reproductions import by_id, reproduce_page

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by tools/reproduce_page.py from docs/reproduce/*.json. -->\n\n"


def page(root: Path = ROOT) -> str:
    """The wanted content of docs/reproduce.md."""
    return reproduce_page(by_id(root / "docs" / "reproduce").values(), note=NOTE)


def stale(root: Path = ROOT) -> bool:
    """Whether docs/reproduce.md is missing or out of date."""
    path = root / "docs" / "reproduce.md"
    return not path.is_file() or path.read_text(encoding="utf-8") != page(root)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reproduce.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is out of date")
    if parser.parse_args().check:
        if stale():
            sys.stdout.write("out of date: docs/reproduce.md\n")
            return 1
        return 0
    write_bytes(ROOT / "docs" / "reproduce.md", page().encode())
    sys.stdout.write("docs/reproduce.md written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
