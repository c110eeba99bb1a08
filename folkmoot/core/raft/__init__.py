"""Consensus (Ongaro 2014, chapters 3, 4, 6 and 10), pure: no I/O, no clock, no randomness."""
