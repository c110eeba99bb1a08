"""The durable log: segments, hard state and manifest, and a twin in memory.

- files: the port to the disk, and a real directory; memory: the faulty twin
- hard_state: term and vote, in two slots; manifest: which segments are live
- segment: records, and how they lie in a file; recovery: reading all of that at a start
- log_store: all of it as one object, with sealing and truncation; writer: its thread
- writes: what it takes from consensus; fail_stop: nothing is tried twice
"""
