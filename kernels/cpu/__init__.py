"""The CPU backend of `astroco_fast.ops`: C++ kernels, compiled by the system's compiler when they are first needed."""
