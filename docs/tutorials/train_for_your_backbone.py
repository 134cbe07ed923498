# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train an upsampler for your own backbone
#
# `kin.upfeat` and `anyup` work with any backbone. JAFAR, LoftUp and most others are trained for one backbone. JAFAR is
# trained on images without labels. Here it is trained for a few steps only, so that the page builds quickly; use more
# steps and images for a useful model.

# %%
import tempfile
from pathlib import Path

from PIL import Image
from skimage.data import astronaut, chelsea, coffee

import upfeat
from upfeat.training import Trainer, create_recipe, read_log

work = Path(tempfile.mkdtemp())
images = work / "images"
images.mkdir()
for name, photo in {"astronaut": astronaut(), "cat": chelsea(), "coffee": coffee()}.items():
    Image.fromarray(photo).save(images / f"{name}.png")

# %% [markdown]
# A recipe is a training configuration with defaults. `jafar_small` is for small networks and training on a CPU;
# `jafar_paper` has the paper's settings. Any setting can be changed by its path.

# %%
config = create_recipe(
    "jafar_small",
    [
        'backbones=[{"name": "upfeat/vit_compact_patch16"}]',
        f'data.paths=["{images}"]',
        "steps=8",
        "batch_size=2",
        "schedule.warmup_steps=0",
        "logging.every=2",
        "checkpoint.every=4",
        "device=cpu",
    ],
)
print(config.upsampler.name, config.objective.name, config.optimizer.lr)

# %% [markdown]
# The same on the command line:
#
# ```bash
# upfeat train jafar_small --backbone upfeat/vit_compact_patch16 --data images --out runs/mine
# ```
#
# Ctrl-C stops a run and saves a snapshot; `fit(resume=True)`, or `--resume`, continues exactly from there.

# %%
result = Trainer(config, work / "run").fit()
for row in read_log(work / "run" / "log.csv"):
    print(int(row["step"]), round(float(row["loss"]), 4))

# %% [markdown]
# The folder `model` contains the weights, the configuration and a model card. Its path can be used wherever an
# upsampler's name is expected, in Python and in every command.

# %%
backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
mine = upfeat.load_upsampler(str(work / "run" / "model"), backbone)
pipe = upfeat.Pipeline(backbone, mine, input_size=224)
print(tuple(pipe(chelsea(), output_size=224).high.shape))

# %% [markdown]
# Is it any good? [Compare it](compare_on_your_data.py) with the methods that need no training.
