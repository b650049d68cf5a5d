"""Passes over a program."""
