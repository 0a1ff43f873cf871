"""Imports PhysicsNeMo's networks without torch's compiler, for `testing.preloaded`."""

from distinf.compiler import import_early

import_early("physicsnemo.models.fno", "physicsnemo.utils")
