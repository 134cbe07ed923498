"""Write upfeat/cli/protocols.json: what `upfeat eval --help` shows of the protocols.

    python tools/protocol_list.py            # write
    python tools/protocol_list.py --check    # exit 1 if it is out of date

It is kept, so that the help need not import the protocols, which import torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from upfeat._files import write_bytes
from upfeat.evaluation.registry import get_protocol, list_protocols

LIST = Path(__file__).resolve().parents[1] / "src" / "upfeat" / "cli" / "protocols.json"


def listing() -> str:
    """The facts of every registered protocol, as JSON."""
    facts = {name: get_protocol(name).command_facts() for name in list_protocols()}
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write what upfeat eval shows of the protocols.")
    parser.add_argument("--check", action="store_true", help="only say whether it is out of date")
    stale = not LIST.is_file() or LIST.read_text(encoding="utf-8") != listing()
    if parser.parse_args().check:
        sys.stdout.write("out of date\n" if stale else "")
        return 1 if stale else 0
    write_bytes(LIST, listing().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
