"""Workers that train together: the cluster of TF_CONFIG, and what they exchange."""
