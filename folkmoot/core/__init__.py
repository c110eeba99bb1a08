"""The replicated core: consensus, storage, sessions, and the loops that drive them."""
