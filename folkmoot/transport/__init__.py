"""Frames, the codec and links: in memory and over TCP."""
