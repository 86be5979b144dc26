"""Gets data sets from the internet or from a copy of ImageNet, using only the standard library."""
