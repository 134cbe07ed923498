# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a photo to sharp features
#
# A vision transformer works on patches: 448 x 448 pixels become 28 x 28 feature vectors. An upsampler turns them into
# one vector per pixel, guided by the photo. Everything here runs offline, with an encoder and an upsampler
# whose weights are in the package.

# %%
import torch
from skimage.data import astronaut

import upfeat
from upfeat.viz import pca_picture

backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
pipe = upfeat.Pipeline(backbone, upfeat.load_upsampler("kin.upfeat", backbone), input_size=224)

# %% [markdown]
# A pipeline takes a path, a PIL image, a uint8 array (H, W, 3) or a tensor in [0, 1]. It resizes and normalises
# the image for both networks.

# %%
photo = astronaut()
out = pipe(photo, output_size=224)
print("image", tuple(out.image.shape))
print("low-res features", tuple(out.low.shape))
print("upsampled", tuple(out.high.shape))

# %% [markdown]
# ## Look at them
#
# The first three principal components as red, green and blue, in one basis for both maps:

# %%
pca_picture(pipe, photo, output_size=224, max_side=320).panel

# %% [markdown]
# ## Find similar pixels
#
# Features of the same object are similar. The cosine similarity between one pixel (given by row and column of the
# output) and all others shows the object that the pixel belongs to.

# %%
query = out.high[:, 60, 110]  # on the face
similarity = torch.cosine_similarity(out.high, query[:, None, None], dim=0)
print("face", round(similarity[55:70, 105:120].mean().item(), 2))
print("flag", round(similarity[100:150, 10:40].mean().item(), 2))
assert similarity[55:70, 105:120].mean() > similarity[100:150, 10:40].mean()

# %% [markdown]
# ## A linear head costs almost nothing
#
# Most upsamplers mix features with the same weights in all channels. A linear head may then go *before* the upsampler:
# three logits are upsampled instead of 192 channels, and the result is the same.

# %%
head = torch.nn.Conv2d(backbone.dim, 3, 1)
encoded = pipe.encode(photo)
with torch.no_grad():
    before = pipe.upsample(encoded, 224, head=head)
    after = head(out.high[None])[0]
print("largest difference", float((before - after).abs().max()))
assert torch.allclose(before, after, atol=1e-4)

# %% [markdown]
# ## Other methods
#
# `upfeat list` names all of them. Those that need no weights, or whose weights are in the package, run as they are:

# %%
for name in (
    "bilinear",
    "guided_filter",
    "jafar.vit_compact_patch16",
    "loftup.vit_compact_patch16",
):
    other = pipe.with_upsampler(upfeat.load_upsampler(name, backbone))
    print(f"{name:30}", tuple(other(photo, output_size=112).high.shape))

# %% [markdown]
# Next: [train an upsampler for your own backbone](train_for_your_backbone.py), or
# [compare methods on your own images](compare_on_your_data.py).
