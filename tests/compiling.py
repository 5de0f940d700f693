"""How tests compile: one level of optimisation for all of them, and for the processes that they start.

Most of the tests' time is compilation, and most of that is LLVM's. Nearly every test compares numbers within float32's
rounding, or bits of one program with bits of the same program: neither needs more than the least of LLVM. One level
also means one cache: what a test or a process has compiled, none compiles again.

Some say AS_USERS: the jitted gradients that decide which releases of JAX are supported, the programs whose memory is
compared with the plan's, and whole trainings, whose hundreds of steps take longer than what less optimisation saves.
`make demo` sets no flags at all.
"""

LEVEL = "--xla_backend_optimization_level=0"
# Compiler options of one function that is compiled as users compile theirs.
AS_USERS = {"xla_backend_optimization_level": 3}


def xla_flags(devices: int) -> str:
    """Return XLA_FLAGS of a process that shall have so many fake CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {LEVEL}"
