"""Commands of `edje` and their options, without the libraries that do their work."""
