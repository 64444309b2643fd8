"""The object store: a local folder or any S3-compatible store, by `obstore`."""
