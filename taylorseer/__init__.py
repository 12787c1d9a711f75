"""taylorseer-trt: the deployment compiler for TaylorSeer (arXiv 2503.06923).

Importing this package loads NumPy at most; each stage (:mod:`taylorseer.exporter`, :mod:`taylorseer.engines`,
:mod:`taylorseer.runtime`) is imported on its own and needs its own libraries only.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
