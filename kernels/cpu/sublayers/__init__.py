"""The ops of `astroco_fast.ops`, each built from native kernels."""
