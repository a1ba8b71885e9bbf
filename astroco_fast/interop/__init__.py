"""Encoders in the form of other packages, so that code written for these runs with one import changed."""
