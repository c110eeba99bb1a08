"""The resources, one file each: commands, machine, events and proxy."""
