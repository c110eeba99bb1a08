"""The durable log: segments, hard state and manifest, and a twin in memory."""
