"""oesir_d2: object embeddings for spliced-image retrieval (OE-SIR) on detectron2.

Importing the package registers its models with detectron2 and exports :func:`add_oesir_config`.
"""

import os
import warnings

# libgomp reads it when torch is loaded, so nothing later would do. Its threads wait for each other some hundred times a
# photo, by default spinning for milliseconds, which makes all work several times slower where another program uses a
# processor too. This many turns are some microseconds, and on an idle machine as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

with warnings.catch_warnings():
    # detectron2 uses names that torch and setuptools have deprecated; users of this package can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from oesir_d2 import modeling
    from oesir_d2.config import add_oesir_config

__version__ = "0.1.0"
__all__ = ["add_oesir_config", "modeling"]
