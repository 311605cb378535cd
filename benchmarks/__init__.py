"""Measures a running itemstore from outside: a process, its port and its database.

Nothing here reaches into the server; ``persisting`` and ``preloading`` measure the storage beneath
it. A benchmark starts what it measures, checks every answer it times, and ends only what it
started. Results keep every single run; ``python -m benchmarks.docs`` makes the pages from them.
"""
