"""Runs that train find PhysicsNeMo's networks imported."""

from testing import preloaded

preloaded.MODULES.append("testing.networks")
