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
# `kin.upfeat` and `anyup` serve any backbone. JAFAR, LoftUp and most others are trained for one; JAFAR needs nothing
# but images, no labels. Here it learns for a few steps, so that the page builds quickly; the same lines train it
# properly with more steps and images.

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
# A recipe is a configuration with defaults that work. `jafar_small` is for small networks and a processor without a
# graphics card; `jafar_paper` has the paper's settings. Anything can be changed by its path.

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
# Ctrl-C ends a run with a snapshot; `fit(resume=True)`, or `--resume`, goes on exactly where it was.

# %%
result = Trainer(config, work / "run").fit()
for row in read_log(work / "run" / "log.csv"):
    print(int(row["step"]), round(float(row["loss"]), 4))

# %% [markdown]
# The folder `model` holds the weights, the configuration and a model card, and loads by its path anywhere a name is
# taken, in Python and in every command.

# %%
backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
mine = upfeat.load_upsampler(str(work / "run" / "model"), backbone)
pipe = upfeat.Pipeline(backbone, mine, input_size=224)
print(tuple(pipe(chelsea(), output_size=224).high.shape))

# %% [markdown]
# Is it any good? [Compare it](compare_on_your_data.py) with the methods that need no training.
