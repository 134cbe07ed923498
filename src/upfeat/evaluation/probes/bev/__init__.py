"""Networks that segment vehicles from above: grid, cameras, lifting, decoders, heads, losses.

SimpleBeV (Harley et al., ICRA 2023, arXiv 2206.07959), PointBeV (Chambon et al., CVPR 2024, arXiv
2312.00703) and BevFormer (Li et al., ECCV 2022, arXiv 2203.17270) as PointBeV's code hosts them.

Legend: ``B`` frames, ``N`` cameras, ``C`` channels, ``h w`` feature maps of a camera, ``X Y``
rows and columns of the map from above, ``Z`` heights, ``P`` points. Ego frame: x forward, y left,
z up, in metres. Row 0 of a map is the largest x, column 0 the largest y.
"""
