"""The sides of benchmarks/engine.py: peers, limits and Mixtura, each in a process of its own."""
