"""Tests of `astroco classify`."""
