"""Where a run computes: device, number formats, and the processes that train together."""
