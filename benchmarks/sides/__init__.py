"""The sides of benchmarks/engine.py: peers, limits and Mixtura, each in its own process."""
