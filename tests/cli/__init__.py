"""The command line, mirrored. What starts servers or other processes is in tests/e2e."""
