"""Record sources: files, the embedded example, partitions and tokenized data sets."""
