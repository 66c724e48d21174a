"""The subcommands of `sohes`, one module each: `add_parser` describes it, `run` does it and returns the exit status.

The modules import only the standard library at their top, so that `--help` answers at once.
"""
