"""The embedded example: files that `cloister simulate` uses where no configuration is given."""
