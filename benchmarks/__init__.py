"""Measured claims about speed and memory: one program a question, run as `python -m benchmarks.NAME`."""
