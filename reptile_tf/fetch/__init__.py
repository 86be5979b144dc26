"""From the internet, or a copy of ImageNet, to files; with the standard library alone."""
