"""The ops of `astroco_fast.ops`, each built from kernels and library matrix products."""
