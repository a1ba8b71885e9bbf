"""The audit: what the compiler makes of every Triton kernel, on each architecture, without a GPU.

    python -m bench.audit [--arch sm_90 ...] [--preset L ...] [--dtype bf16 ...] [--op attention ...]

No kernel is listed by hand: the ops themselves run, forward and backward, on small CPU tensors, and record each launch
instead of making it (`launch.recording`). So the audit compiles what a GPU would get: these kernels, tilings and
constants, specialised by Triton's own code. `binary.BARS` holds the limits of a compiled kernel; the exit status is 1
where a kernel breaks one, else 0.
"""
