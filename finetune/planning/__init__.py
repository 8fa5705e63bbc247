"""What a training will need before it is begun: parameters, memory, work, disk and time."""
