"""Reads and writes the weights of packed folders, Mixtura's quantised format for CPUs."""
