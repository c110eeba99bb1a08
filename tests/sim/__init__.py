"""The simulator: a whole cluster with its clients, its faults and its checks, from one seed.

Real are consensus, the replica's turn, sessions, multiplexer, the five machines, the log's segments
and the client's session code. Simulated are time, network, disks' power, and what applications do.
Nothing here reads a clock, starts a thread or touches a file, and nothing depends on the order of a
hash: a seed gives the same trace, byte for byte, on every machine.

    seed -> Options (options.py)      what can go wrong in this run, how often; printed
         -> Simulation (simulation.py)
              scheduler.py            virtual time: one heap of events; clocks that drift
              network.py  links.py    streams that stall, break and come back; bare datagrams
              disk.py  member.py      a server: LogStore on a disk in memory, and a Replica
              housekeeping.py         what is done beside its loop: compactions, files of prefixes
              client.py  application.py   a client: SessionClient, and somebody who uses it
              nemesis.py              crashes, partitions, pauses, slow disks, transfers, ...
              checks/                 one small checker per property, asked after every event
         -> Outcome: SHA-256 of the trace, counters; or a Failure with the line that replays it

Start with `simulation.py`. The page for readers is docs/internals/simulation.md.
"""
