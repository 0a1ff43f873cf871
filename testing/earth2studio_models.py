"""Imports Earth2Studio's models in the quick way, for `testing.preloaded`."""

from distinf.loading.imports import import_first

import_first("earth2studio.perturbation")
