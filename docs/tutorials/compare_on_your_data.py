# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare methods on your own data
#
# Which upsampler is best for *your* images? A linear probe answers this: a linear layer is trained on the upsampled
# features of each method, with the same settings, and its segmentation is compared with labels. Your folder contains
# `images/` and `labels/` with PNGs of class indices; here we draw such a data set.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

work = Path(tempfile.mkdtemp())
root = work / "shapes"
(root / "images").mkdir(parents=True)
(root / "labels").mkdir()
draw = np.random.default_rng(0)
for number in range(16):
    noise = draw.integers(0, 90, (96, 96, 3), dtype=np.uint8)
    image, label = Image.fromarray(noise), Image.new("L", (96, 96))
    for kind, color in ((1, (200, 60, 50)), (2, (60, 90, 210))):
        left, top, side = (int(n) for n in draw.integers((0, 0, 28), (50, 50, 44)))
        box = (left, top, left + side, top + side)
        for picture, fill in ((image, color), (label, kind)):
            shape = (
                ImageDraw.Draw(picture).ellipse if kind == 1 else ImageDraw.Draw(picture).rectangle
            )
            shape(box, fill=fill)
    image.save(root / "images" / f"{number:02d}.png")
    label.save(root / "labels" / f"{number:02d}.png")
(root / "classes.txt").write_text("background\ndisc\nsquare\n")

# %% [markdown]
# One command evaluates all methods on the same features and prints a table with all settings. `low-res`
# means the backbone's features without upsampling.

# %%
line = [
    *(sys.executable, "-m", "upfeat", "eval", "seg-probe"),
    *("--backbone", "upfeat/vit_compact_patch16", "--upsampler", "low-res,bilinear,kin.upfeat"),
    *("--data", "folder", "--root", str(root), "--seeds", "0"),
    *("--set", "steps=60", "--set", "input_size=[96, 96]"),
    *("--out", str(work / "results"), "--tables", str(work / "tables")),
]
done = subprocess.run(line, capture_output=True, text=True, check=True)
print(done.stdout)

# %% [markdown]
# `--tables` writes the scores as Markdown, CSV and LaTeX, with the IoU of each class:

# %%
for file in sorted((work / "tables").glob("*.md")):
    print(file.read_text())

# %% [markdown]
# A second call with more methods computes only those that are missing. `upfeat report results --out page` makes one
# HTML page of all results. Depth, video, key points and what is checked: [your own data](../your_data.md).
