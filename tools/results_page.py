"""Write docs/results.md from docs/results/*.json and docs/results/remarks.md.

    python tools/results_page.py            # write
    python tools/results_page.py --check    # exit 1 if the page is out of date

The tables, their best numbers and the commands come from the results; what people conclude stands
in remarks.md, under the headings of the page. ``upfeat report --markdown`` writes such a page of
any results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upfeat._files import write_bytes
from upfeat.evaluation.tables import build_tables, gather_results
from upfeat.evaluation.tables.markdown import results_page

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by tools/results_page.py; edit docs/results/remarks.md. -->\n\n"


def page(root: Path = ROOT) -> str:
    """The wanted content of docs/results.md."""
    folder = root / "docs" / "results"
    remarks = folder / "remarks.md"
    return results_page(
        build_tables(gather_results([folder])),
        note=NOTE,
        link="results/",
        remarks=remarks.read_text(encoding="utf-8") if remarks.is_file() else "",
    )


def stale(root: Path = ROOT) -> bool:
    """Whether docs/results.md is missing or out of date."""
    path = root / "docs" / "results.md"
    return not path.is_file() or path.read_text(encoding="utf-8") != page(root)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/results.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is out of date")
    if parser.parse_args().check:
        if stale():
            sys.stdout.write("out of date: docs/results.md\n")
            return 1
        return 0
    write_bytes(ROOT / "docs" / "results.md", page().encode())
    sys.stdout.write("docs/results.md written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
