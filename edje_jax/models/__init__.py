"""Pure functions of (params, arrays); nothing here opens a file."""
