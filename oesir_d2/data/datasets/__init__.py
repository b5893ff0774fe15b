"""Datasets: one loader a file."""
