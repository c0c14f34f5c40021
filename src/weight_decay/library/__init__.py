"""The public Python API, around training loops that are not ours; reached as `weight_decay.NAME`."""
