"""The benchmark: the service, the afternoon version and the store alone, side by side."""
