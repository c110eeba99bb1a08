"""Folkmoot: distributed primitives on one Raft log."""
