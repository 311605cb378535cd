"""Decides. Nothing here awaits, looks at a clock, draws a random number or touches a disk:
time and chance come in as arguments, so every decision can be replayed."""
