"""Measure the exports of all methods on small networks, and write the table of docs/ship_it.md.

Run it from the root of a checkout: ``python tools/export_table.py measure`` fills docs/ship_it.json
(methods by name: ``measure kin jafar``), ``python tools/export_table.py`` writes the table.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import upfeat
from upfeat.errors import UnsupportedError
from upfeat.export import export_model

DATA = Path("docs/ship_it.json")
PAGE = Path("docs/ship_it.md")
BEGIN = "<!-- Written by tools/export_table.py. -->\n"
END = "<!-- End of what tools/export_table.py writes. -->\n"
SIDES = (96, 128)
WIDTH = 16
# Networks as small as the methods allow; others are built as they are.
SMALL: dict[str, dict[str, Any]] = {
    "anyup": {"qk_dim": 16},
    "jafar": {"qk_dim": 32},
    "kin": {"dim": 8},
    "loftup": {"num_heads": 4},
    "naf": {"dim": 32, "kernel_size": 5},
    "pixelup": {
        **{"d_enc": 16, "num_heads_encoder": 2, "num_heads_decoder": 2, "rope_directions": 2},
        **{"kernel_size": 5, "smallest_side": 160, "encoder": "test_convnext"},
    },
    "vit_up": {"num_blocks": 2, "num_heads": 2, "patch_size": 4},
}
COLUMNS = [
    ("torch.export, fixed size", "torch", "static"),
    ("torch.export, any size", "torch", "dynamic"),
    ("ONNX, fixed size", "onnx", "static"),
    ("ONNX, any size", "onnx", "dynamic"),
    ("OpenVINO, fixed size", "openvino", "static"),
    ("OpenVINO, any size", "openvino", "dynamic"),
]


def small(name: str) -> upfeat.Upsampler:
    """A method's small network with random weights; the seed is fixed."""
    torch.manual_seed(0)
    options = SMALL.get(name, {})
    try:
        return upfeat.create_upsampler(name, feature_dim=WIDTH, **options).eval()
    except TypeError:
        return upfeat.create_upsampler(name, **options).eval()


def measure(name: str, format: str, sizes: str) -> dict[str, object]:
    """Export once; the relative difference from PyTorch and the bytes, or why it cannot be done."""
    upsampler = small(name)
    declared = getattr(upsampler.info.abilities.export, format)
    if declared == "no" or (sizes == "dynamic" and declared != "dynamic"):
        return {}
    height, width = SIDES if sizes == "static" else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = export_model(
                folder, upsampler, format=format, height=height, width=width, channels=WIDTH
            )
        except UnsupportedError as error:
            return {"error": str(error)}
    parity = max(one.relative for one in made.record.parity)
    return {"parity": parity, "bytes": made.record.bytes, "versions": made.record.versions}


def table() -> str:
    """The table as Markdown: difference over the largest value, and the size of the file."""
    measured = json.loads(DATA.read_text())
    heads = [head for head, _, _ in COLUMNS]
    lines = ["| method | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name in sorted(measured):
        able = small(name).info.abilities.export
        cells = []
        for _, kind, sizes in COLUMNS:
            declared = getattr(able, kind)
            possible = declared == "dynamic" or declared == sizes
            cells.append(_cell(measured[name].get(f"{kind} {sizes}", {}), possible))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, object], possible: bool) -> str:
    if "parity" not in found:
        return "not measured" if possible else "-"
    return f"{found['parity']:.0e}, {float(str(found['bytes'])) / 1e6:.2f} MB"


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measured = json.loads(DATA.read_text()) if DATA.is_file() else {}
        for name in sys.argv[2:] or upfeat.list_upsamplers():
            rows = measured.setdefault(name, {})
            for _, kind, sizes in COLUMNS:
                rows[f"{kind} {sizes}"] = measure(name, kind, sizes)
                DATA.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
                sys.stderr.write(f"{name} {kind} {sizes} {rows[f'{kind} {sizes}']}\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
