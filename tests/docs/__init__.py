"""Tests that hold the README and the documentation to what the program does."""
