"""The interactive page: a photo in, upsampled features, similar pixels and words out.

:mod:`~upfeat.app.studio` computes and knows no Gradio, :mod:`~upfeat.app.page` shows it in a
browser, :mod:`~upfeat.app.space` writes the files of a hosted copy.
"""

from upfeat.app.page import build_page, launch
from upfeat.app.space import write_space
from upfeat.app.studio import Prepared, Studio

__all__ = ["Prepared", "Studio", "build_page", "launch", "write_space"]
