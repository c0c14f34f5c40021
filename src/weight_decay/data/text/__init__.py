"""Token streams: their preparation, files, fixed windows and the stream that trains."""
