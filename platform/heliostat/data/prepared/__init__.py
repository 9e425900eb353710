"""Image sets that are prepared once and streamed: Parquet with encoded images, balanced row groups and an index."""
