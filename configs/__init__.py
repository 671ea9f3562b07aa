"""One small file per experiment; each defines `config`."""
