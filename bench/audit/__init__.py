"""What the compiler makes of every Triton kernel, on each architecture, without a GPU.

    python -m bench.audit [--arch sm_90 ...] [--preset L ...] [--dtype bf16 ...] [--op attention ...]

Nothing is listed by hand: the ops themselves run, forward and backward, on small CPU tensors, and hand over each launch
in place of making it (`launch.recording`). So what is audited is what a GPU would be given: these kernels, tilings and
constants, specialised by Triton's own code. What a compiled kernel must keep to is in `BARS`; the exit status is 1
where one does not, else 0.
"""
