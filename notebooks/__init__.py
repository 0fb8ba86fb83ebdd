"""Notebooks, and the program that runs them."""
