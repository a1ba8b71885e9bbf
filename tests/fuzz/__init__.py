"""Fuzzing: every kind of file that the package reads, damaged and odd, given to the function that reads it.

Asked of each input: a valid result, or a `UserError`, within limits of time and memory. Anything else is a failure.

- `seeds` makes valid files of every kind, `kinds` says how each kind is read, `limits` sets the limits.
- `strategies` makes odd files from the outside (bytes changed) and from the inside (odd values, types, names).
- `test_fuzz` gives some thousand inputs, the same each time, in the default tests.
- `python -m tests.fuzz` gives any number, guided by coverage, in child processes (`campaign`), and writes the record
  that docs/reliability.md shows.
"""
