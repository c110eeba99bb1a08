"""Real processes, real clocks."""
