"""Bad input and broken disks against real servers."""
