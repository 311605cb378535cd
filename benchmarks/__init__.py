"""Measures a running itemstore from outside: a process, its port and its database.

Nothing here reaches into the server. A benchmark starts what it measures, checks every answer it
times, and ends only what it started. Results keep every single run; docs/benchmarks.md is made
from them by ``python -m benchmarks.docs``.
"""
