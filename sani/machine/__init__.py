"""The machine: device, memory, and the processes of a distributed run."""
