"""Published data sets, one file each: where the files of a split lie, never a download.

Every module of this folder is imported below, so that a labelled set enters itself into the
registry (``register_segmentation``). A new set is a new file.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
